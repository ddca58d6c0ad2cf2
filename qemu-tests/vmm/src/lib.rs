//! ve-apf-vmm
