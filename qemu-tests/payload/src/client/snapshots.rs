//! L2 is saved into an image by its QEMU, runs on, and is put back to where it was, over and over.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::qmp::Qmp;
use super::walked::{Story, Vm};
use super::{cgroup, conclude};

const IMAGE: &str = "/tmp/vmstate.qcow2";
const IMAGE_MIB: usize = 160;
/// Block nodes: the file, and the image in it, which is no disk of L2's.
const FILE: &str = "file";
const NODE: &str = "vmstate";
const TAG: &str = "here";

/// Runs it `rounds` times.
pub fn run(device: &str, rounds: usize, append: &str) -> Result<()> {
    cgroup::swap_to(device)?;
    let mut vm = Vm::start("saved", append, &[])?;
    make_image(&mut vm.qmp)?;
    let mut story = Story::default();
    story.begun(&mut vm)?;
    for _ in 0..rounds {
        vm.swap_out()?;
        vm.stop()?;
        story.moment(&mut vm)?;
        vm.qmp.job("snapshot-save", snapshot())?;
        vm.go_on()?;
        story.all_run(&mut vm)?;
        vm.swap_out()?;
        vm.stop()?;
        vm.qmp.job("snapshot-load", snapshot())?;
        vm.go_on()?;
        story.all_run(&mut vm)?;
        vm.qmp.job("snapshot-delete", json!({"tag": TAG, "devices": [NODE]}))?;
    }
    let (walk, more) = story.end(&mut vm)?;
    conclude("snapshots", &walk, more)
}

fn snapshot() -> Value {
    json!({"tag": TAG, "vmstate": NODE, "devices": [NODE]})
}

/// Has QEMU make an image in a file whose pages are this program's, so that its cgroup does not pay for them.
fn make_image(qmp: &mut Qmp) -> Result<()> {
    let mut file = File::create(IMAGE).context(IMAGE)?;
    let mib = vec![0; 1 << 20];
    (0..IMAGE_MIB).try_for_each(|_| file.write_all(&mib)).context(IMAGE)?;
    qmp.run("blockdev-add", json!({"driver": "file", "node-name": FILE, "filename": IMAGE}))?;
    let options = json!({"driver": "qcow2", "file": FILE, "size": 1 << 20});
    qmp.job("blockdev-create", json!({"options": options}))?;
    qmp.run("blockdev-add", json!({"driver": "qcow2", "node-name": NODE, "file": FILE}))?;
    Ok(())
}
