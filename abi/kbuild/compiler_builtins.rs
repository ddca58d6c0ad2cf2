//! What rustc insists on linking into every program: empty, since the kernel itself has `memcpy`
//! and its kin, and nothing else of it is needed.
#![allow(internal_features, missing_docs)]
#![feature(compiler_builtins)]
#![compiler_builtins]
#![no_builtins]
#![no_std]
