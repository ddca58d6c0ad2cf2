//! L2 is reset by its QEMU while it runs, over and over, and boots anew each time.

use anyhow::Result;
use serde_json::json;

use super::walked::{Story, Vm};
use super::{cgroup, conclude};

/// Runs it `rounds` times.
pub fn run(device: &str, rounds: usize, append: &str) -> Result<()> {
    cgroup::swap_to(device)?;
    let mut vm = Vm::start("reset", append, &["-action", "reboot=reset"])?;
    let mut story = Story::default();
    story.begun(&mut vm)?;
    for _ in 0..rounds {
        story.all_run(&mut vm)?;
        vm.swap_out()?;
        vm.stop()?;
        story.moment(&mut vm)?;
        vm.qmp.run("system_reset", json!({}))?;
        vm.go_on()?;
        story.begun(&mut vm)?;
    }
    story.all_run(&mut vm)?;
    let (walk, more) = story.end(&mut vm)?;
    conclude("resets", &walk, more)
}
