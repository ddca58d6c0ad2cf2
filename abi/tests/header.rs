//! The C header is this crate, and a C compiler agrees with both.
//!
//! `VE_APF_UPDATE=1 cargo test -p ve-apf-abi --test header` writes the header anew.

use cbindgen::{Config, EnumConfig, ExportConfig, Language, Style};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[path = "header/layout.rs"]
mod layout;

fn header_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include/ve_apf_abi.h")
}

/// What cbindgen makes of `src/`: layouts and numbers only, no state machine types.
fn generate() -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rename = [("Ring", "ve_apf_ring"), ("Slot", "ve_apf_slot"), ("VeInfo", "ve_apf_ve_info")];
    let config = Config {
        language: Language::C,
        style: Style::Tag,
        no_includes: true,
        cpp_compat: false,
        documentation: true,
        documentation_style: cbindgen::DocumentationStyle::C,
        tab_width: 8,
        header: Some(
            [
                "/* SPDX-License-Identifier: GPL-2.0-only OR MIT */",
                "/* ABI v1 (draft) of ve-apf. Generated from the crate ve-apf-abi; do not edit. */",
            ]
            .join("\n"),
        ),
        include_guard: Some("_LINUX_VE_APF_ABI_H".into()),
        after_includes: Some(
            [
                "#ifdef __KERNEL__",
                "#include <linux/types.h>",
                "#else",
                "#include <stdint.h>",
                "#endif",
                "",
                "#define VE_APF_ALIGNED(bytes) __attribute__((aligned(bytes)))",
            ]
            .join("\n"),
        ),
        export: ExportConfig {
            include: rename.iter().map(|(rust, _)| (*rust).to_owned()).collect(),
            exclude: ["Caps", "Enable", "State", "SlotWord", "Generation", "FaultInfo"]
                .map(str::to_owned)
                .to_vec(),
            rename: rename.iter().map(|(rust, c)| ((*rust).to_owned(), (*c).to_owned())).collect(),
            ..ExportConfig::default()
        },
        enumeration: EnumConfig::default(),
        layout: cbindgen::LayoutConfig { packed: None, aligned_n: Some("VE_APF_ALIGNED".into()) },
        ..Config::default()
    };
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in ["msr", "hypercall", "word", "ring", "ve_info", "vm"] {
        builder = builder.with_src(source.join(module).with_extension("rs"));
    }
    let bindings = builder.generate().expect("cbindgen reads the crate");
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).expect("cbindgen writes UTF-8");
    let mut in_comment = false;
    let mut out = String::new();
    for line in text.lines() {
        writeln!(out, "{}", kernel_style(line, &mut in_comment)).expect("a String");
    }
    out
}

/// Makes C comments of rustdoc, tabs of blanks, and hexadecimal of what are not counts.
fn kernel_style(line: &str, in_comment: &mut bool) -> String {
    if let Some((name, value)) = line.strip_prefix("#define ").and_then(|d| d.split_once(' ')) {
        return format!("#define {name} {}", number(name, value));
    }
    let text = line.trim_start();
    let indent = "\t".repeat((line.len() - text.len()) / 8);
    match (*in_comment, text) {
        (false, _) => {
            *in_comment = text == "/*";
            format!("{indent}{text}")
        }
        (true, "*/") => {
            *in_comment = false;
            format!("{indent} */")
        }
        (true, "") => " *".to_owned(),
        (true, _) => format!("{indent} * {}", plain(text)),
    }
}

/// Text without rustdoc's links and backquotes.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        out.push_str(&rest[..at]);
        rest = rest[at..].split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.replace(['`', '[', ']'], "")
}

fn number(name: &str, value: &str) -> String {
    let Ok(parsed) = value.trim_end_matches("ull").parse::<u64>() else {
        return value.to_owned();
    };
    let suffix = match parsed {
        0..=0x7fff_ffff => "",
        0x8000_0000..=0xffff_ffff => "U",
        _ => "ULL",
    };
    let mask = name.ends_with("_MASK") || name.ends_with("_RESERVED");
    if mask || parsed > 1000 { format!("{parsed:#x}{suffix}") } else { format!("{parsed}{suffix}") }
}

#[test]
fn checked_in_header_is_current() {
    let new = generate();
    if std::env::var_os("VE_APF_UPDATE").is_some() {
        std::fs::write(header_path(), &new).expect("include/ can be written");
    }
    let old = std::fs::read_to_string(header_path()).unwrap_or_default();
    assert!(
        old == new,
        "include/ve_apf_abi.h is not what the crate says: look at what changed, and run \
         `VE_APF_UPDATE=1 cargo test -p ve-apf-abi --test header`"
    );
}

#[test]
fn a_c_compiler_agrees() {
    layout::check(&generate());
}
