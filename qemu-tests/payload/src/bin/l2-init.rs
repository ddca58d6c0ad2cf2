//! `/init` of L2: runs the workloads its kernel command line names, then tells the VMM to stop.
//!
//! `veapf.run=NAME[+NAME...]` and `veapf.KEY=VALUE`; each workload's documentation lists its keys. `NAME:KEY=VALUE` holds
//! for that run only. With `veapf.stay=1` the
//! machine stays on at the end, under a VMM that knows nothing of the test.

use serde_json::json;
use ve_apf_payload::device::Device;
use ve_apf_payload::options::Options;
use ve_apf_payload::{plan, process, system, workload};

fn main() {
    // Started by a workload that only wants a program to be executed.
    if std::env::args().nth(1).as_deref() == Some("--exit") {
        std::process::exit(process::EXEC_CODE);
    }
    system::mount_all();
    let options = Options::from_kernel();
    let mut names = options.text("run", "info").split('+').map(|run| options.for_run(run).0);
    let device = if names.any(workload::may_use_device) { Device::open() } else { Ok(None) };
    let code = match device {
        Ok(device) => {
            let code = run(&options, device.as_ref());
            if let Some(device) = &device {
                device.exit(code);
                system::restart();
            }
            code
        }
        Err(error) => {
            println!("l2-init: {error:#}");
            1
        }
    };
    println!("l2-init: exit code {code}");
    if options.text("stay", "0") == "1" {
        system::stay();
    }
    system::power_off();
}

fn run(options: &Options, device: Option<&Device>) -> u8 {
    let mut code = 0;
    for run in options.text("run", "info").split('+') {
        let (name, own) = options.for_run(run);
        if let Err(error) = workload::run(name, &own, device) {
            let record = json!({"kind": "error", "where": "l2", "workload": name, "error": format!("{error:#}")});
            match device {
                Some(device) => device.report("", &record),
                None => plan::print(&record),
            }
            code = 1;
        }
    }
    code
}
