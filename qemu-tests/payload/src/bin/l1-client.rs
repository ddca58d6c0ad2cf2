//! Boots L2 in Debian's QEMU: `l1-client swap DEVICE [L2-COMMAND-LINE]`, `l1-client postcopy [L2-COMMAND-LINE]`,
//! `l1-client dax [L2-COMMAND-LINE]`, `l1-client refused`.
//!
//! Prints one `client` record. Exit code 0, 1 (failed), 2 (usage).

use std::process::ExitCode;

use ve_apf_payload::client::{dax, postcopy, refused, swap};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["swap", device] => swap::run(device, ""),
        ["swap", device, append] => swap::run(device, append),
        ["postcopy"] => postcopy::run(""),
        ["postcopy", append] => postcopy::run(append),
        ["dax"] => dax::run(""),
        ["dax", append] => dax::run(append),
        ["refused"] => refused::run(""),
        _ => {
            eprintln!(
                "usage: l1-client swap DEVICE [L2-COMMAND-LINE] | l1-client postcopy|dax [L2-COMMAND-LINE] | l1-client refused"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("l1-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}
