//! `/init` of L1: mounts, loads modules, runs the plan, reports, powers off.

use serde_json::json;
use ve_apf_payload::{dmesg, leaks, plan, sys, system};

fn main() {
    system::mount_all();
    if let Err(error) = system::load_modules("/modules") {
        println!("l1-init: modules: {error}");
    }
    if let Err(error) = system::loopback_up() {
        println!("l1-init: loopback interface: {error}");
    }
    // Guests do not run on the first CPU: QEMU's TCG corrupts its state when another CPU restores its FPU (docs/notes/0004).
    if let Err(error) = sys::spare_first_cpu() {
        println!("l1-init: cannot leave the first CPU: {error}");
    }
    match plan::read("/plan.json") {
        Ok(steps) => {
            for step in &steps {
                plan::print(&plan::run(step));
            }
        }
        Err(error) => {
            plan::print(&json!({"kind": "error", "where": "l1", "error": format!("{error:#}")}))
        }
    }
    if let Err(error) = leaks::look() {
        println!("l1-init: kmemleak: {error}");
    }
    plan::print(&json!({"kind": "dmesg", "where": "l1", "bad": dmesg::bad_lines()}));
    plan::print(&json!({"kind": "end"}));
    system::power_off();
}
