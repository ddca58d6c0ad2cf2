//! On bare metal the program is linked at a fixed address, page by page as `link.ld` says.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let dir = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{dir}/link.ld");
    }
}
