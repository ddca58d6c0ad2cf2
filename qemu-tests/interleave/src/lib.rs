//! ve-apf-interleave
