//! `ve-apf-vmm`: see `--help`.

use std::process::exit;

use ve_apf_vmm::args::{Args, Parsed, USAGE};
use ve_apf_vmm::machine;

fn main() {
    let args = match Args::parse(std::env::args_os().skip(1).collect()) {
        Ok(Parsed::Run(args)) => args,
        Ok(Parsed::Help) => {
            print!("{USAGE}");
            exit(0);
        }
        Err(message) => {
            eprintln!("ve-apf-vmm: {message}");
            exit(2);
        }
    };
    match machine::run(*args) {
        Ok(outcome) => exit(outcome.exit_code()),
        Err(error) => {
            eprintln!("ve-apf-vmm: {error:#}");
            exit(1);
        }
    }
}
