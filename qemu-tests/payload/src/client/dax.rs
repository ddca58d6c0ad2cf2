//! L2 has a virtio-pmem, which is a file in L1, with an ext4 -o dax on it. The part of the file that holds one of L2's files
//! is cut off while L2 runs, and comes back later: once for a program that touches its mapping of the file, once
//! for system calls.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::backing::Backing;
use super::qemu::{Guest, Qemu};
use super::qmp::Qmp;
use super::{conclude, kvm_stats};

const IMAGE: &str = "/tmp/pmem.img";
const MIB: u64 = 32;
const SOCKET: &str = "/tmp/qmp-dax";
/// KVM's counters, whose growth during a step is part of its record.
const STATS: [&str; 2] = ["exits", "pf_taken"];

/// Runs it; `append` says which kind of asynchronous page faults L2 has.
pub fn run(append: &str) -> Result<()> {
    let mut backing = Backing::create(IMAGE, MIB)?;
    let append = format!("veapf.run=dax_file {append}");
    let object = format!("memory-backend-file,id=pmem,mem-path={IMAGE},size={MIB}M,share=on");
    let qmp = format!("unix:{SOCKET},server=on,wait=off");
    let more = ["-object", &object, "-device", "virtio-pmem-pci,memdev=pmem", "-qmp", &qmp];
    let more = more.map(str::to_owned);
    let guest = Guest {
        machine: "pc",
        memory: "192,slots=2,maxmem=1G",
        vcpus: 1,
        append: &append,
        more: &more,
        cgroup: None,
    };
    let qemu = Qemu::start("dax", &guest)?;
    let qmp = Qmp::connect(SOCKET)?;
    let mut vm = Vm { qemu, qmp, record: Map::new() };
    let ready = vm.qemu.wait_for("step", "ready", Duration::from_secs(120))?;
    let cut = ready["cut"].as_u64().context("no cut")?;
    let whole = vm.steps(&mut backing, cut)?;
    let stderr = vm.qemu.stderr();
    let status = vm.qmp.run("query-status", json!({}))?["status"].clone();
    let record = &mut vm.record;
    record.insert("status".to_owned(), status);
    record.insert("whole".to_owned(), json!(whole));
    record.insert("stderr".to_owned(), json!(stderr));
    if !whole {
        let error = vm.qmp.run("cont", json!({})).err();
        record.insert("cont".to_owned(), json!(error.map(|error| error.to_string())));
    }
    conclude("dax", &json!({}), Value::Object(vm.record))
}

struct Vm {
    qemu: Qemu,
    qmp: Qmp,
    record: Map<String, Value>,
}

impl Vm {
    /// The story; returns whether the VM lived to its end.
    fn steps(&mut self, backing: &mut Backing, cut: u64) -> Result<bool> {
        let outages: [(&[&str], &str); 2] =
            [(&["touch 3", "store 4"], ""), (&["read 5", "write 6", "sync 6"], "_again")];
        for (commands, suffix) in outages {
            backing.cut(cut)?;
            let mut pending = false;
            for command in commands {
                if !self.step(command, first_word(command))? {
                    return Ok(false);
                }
                pending = self.record[first_word(command)]["state"] == "pending";
                if pending {
                    break;
                }
            }
            backing.restore()?;
            if pending && !self.step("join", &format!("joined{suffix}"))? {
                return Ok(false);
            }
            for (command, name) in [("touch 3", "touched"), ("verify", "verified")] {
                if !self.step(command, &format!("{name}{suffix}"))? {
                    return Ok(false);
                }
            }
        }
        self.qemu.type_line("end")?;
        let end = self.qemu.wait_for("step", "end", Duration::from_secs(30))?;
        self.record.insert("end".to_owned(), end);
        Ok(true)
    }

    /// Has L2 carry out a command, and records its answer as `name`; false if the VM stopped.
    fn step(&mut self, command: &str, name: &str) -> Result<bool> {
        let verb = first_word(command);
        let pid = self.qemu.pid();
        let (before, began) = (STATS.map(|name| kvm_stats::read(pid, name)), Instant::now());
        self.qemu.type_line(command)?;
        let end = began + Duration::from_secs(90);
        let (mut answer, alive) = loop {
            if let Some(answer) = self.qemu.poll_for("step", verb, Duration::from_millis(200))? {
                break (answer, true);
            }
            let status = self.qmp.run("query-status", json!({}))?;
            if status["running"] != true {
                break (json!({"state": "vm stopped", "vm": status}), false);
            }
            if Instant::now() > end {
                bail!("{command}: no answer, and the VM runs");
            }
        };
        for (name, before) in STATS.into_iter().zip(before) {
            answer[name] = json!(kvm_stats::read(pid, name)? - before?);
        }
        answer["total_ms"] = json!(u64::try_from(began.elapsed().as_millis())?);
        self.record.insert(name.to_owned(), answer);
        Ok(alive)
    }
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or(text)
}
