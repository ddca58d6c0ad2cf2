//! Ends VMMs whose VMs wait for pages, and looks at what is left of them.
//!
//! `l1-vmms HOW ROUNDS OUTSTANDING KERNEL VMM`: KERNEL is the bare-metal test kernel; HOW is one of [`vmms::HOWS`]. Prints one `vmms`
//! record. Exit code 0, 1 (failed), 2 (usage).

use std::process::ExitCode;

use ve_apf_payload::vmms;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let plan = match words.as_slice() {
        [how, rounds, outstanding, kernel, vmm] => {
            vmms::Plan::parse(how, rounds, outstanding, [kernel, vmm])
        }
        _ => None,
    };
    let Some(plan) = plan else {
        eprintln!("usage: l1-vmms {} ROUNDS OUTSTANDING KERNEL VMM", vmms::HOWS.join("|"));
        return ExitCode::from(2);
    };
    match vmms::run(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("l1-vmms: {error:#}");
            ve_apf_payload::plan::print(
                &serde_json::json!({"kind": "error", "where": "l1", "error": format!("{error:#}")}),
            );
            ExitCode::FAILURE
        }
    }
}
