//! `/init` of L1: mounts, loads modules, runs the plan, reports, powers off.

use serde_json::json;
use ve_apf_payload::{dmesg, leaks, plan, system};

fn main() {
    system::mount_all();
    if let Err(error) = system::load_modules("/modules") {
        println!("l1-init: modules: {error}");
    }
    if let Err(error) = system::loopback_up() {
        println!("l1-init: loopback interface: {error}");
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
