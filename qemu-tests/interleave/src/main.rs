//! Runs scenarios by name, or all: `ve-apf-interleave [NAME...]`. Exit code 1: a violation.

use std::process::ExitCode;
use ve_apf_interleave::explore::explore;
use ve_apf_interleave::scenarios::all;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut code = ExitCode::SUCCESS;
    for scenario in all() {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == scenario.name) {
            continue;
        }
        match explore(&scenario) {
            Ok(done) => println!("{:<24} {done}", scenario.name),
            Err(violation) => {
                println!("{}\n{violation}", scenario.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
