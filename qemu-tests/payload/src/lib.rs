//! ve-apf-payload
