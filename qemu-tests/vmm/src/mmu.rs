//! What a host may do to a VM's memory, between two walks of all entries of its MMU (CONFIG_KVM_VE_APF_CHECK).

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_clear_dirty_log, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use serde_json::{Map, Value, json};
use ve_apf_testdev::{Mmu as What, Run};
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::memory::Ram;
use crate::pager::Pager;
use log::{frames, is_set};
use numbers::KVM_CLEAR_DIRTY_LOG;

mod log;
mod slots;

mod numbers {
    use kvm_bindings::kvm_clear_dirty_log;
    use vmm_sys_util::ioctl_iowr_nr;

    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, 0xae, 0xc0, kvm_clear_dirty_log);
}

/// Carries out [`ve_apf_testdev::Op::Mmu`].
pub struct Mmu {
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
    pager: Arc<Pager>,
    debugfs: PathBuf,
}

const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
const IDLE: &str = "/sys/kernel/mm/page_idle/bitmap";
const NX_HUGE_PAGES: &str = "/sys/module/kvm/parameters/nx_huge_pages";
/// Where [`What::Move`] puts a memslot: above all memory, below any CPU's address width.
const AWAY: u64 = 64 << 30;

impl Mmu {
    /// For this VM. Its files are looked up when they are needed.
    pub fn new(vm: Arc<VmFd>, ram: Arc<Ram>, pager: Arc<Pager>) -> Mmu {
        let name = format!("{}-{}", std::process::id(), vm.as_raw_fd());
        Mmu { vm, ram, pager, debugfs: Path::new("/sys/kernel/debug/kvm").join(name) }
    }

    /// Does it; returns what goes into the data area.
    pub fn command(&self, [what, a, b, _]: [u64; 4], runs: &[Run]) -> Result<Value> {
        let what = What::from_u64(what).context("no such operation")?;
        let before = self.walk()?;
        if what == What::Check {
            return Ok(json!({"after": before}));
        }
        let counts = self.carry_out(what, a, b, runs).with_context(|| format!("{what:?}"))?;
        let mut answer = json!({"before": before, "after": self.walk()?});
        for (name, value) in counts.as_object().into_iter().flatten() {
            answer[name] = value.clone();
        }
        Ok(answer)
    }

    fn carry_out(&self, what: What, a: u64, b: u64, runs: &[Run]) -> Result<Value> {
        let on = a != 0;
        match what {
            What::Check => {}
            What::Evict => self.pager.evict(runs, (b == 0).then_some(a))?,
            What::Restore => return Ok(json!({"delivered": self.pager.restore(runs)?})),
            What::Remake => return self.without(a, 0),
            What::Move => return self.without(a, AWAY),
            What::Protect => self.ram.protect(runs, on)?,
            What::ReadOnly => self.read_only(runs, on)?,
            What::ZapOwn => {
                let quirk = if on { u64::from(KVM_X86_QUIRK_SLOT_ZAP_ALL) } else { 0 };
                self.enable(KVM_CAP_DISABLE_QUIRKS2, quirk)?;
            }
            What::ZapAll => {
                // KVM does when this changes.
                let was = fs::read_to_string(NX_HUGE_PAGES).context(NX_HUGE_PAGES)?;
                let other = if was.trim() == "Y" { "N" } else { "Y" };
                fs::write(NX_HUGE_PAGES, other)?;
                fs::write(NX_HUGE_PAGES, was)?;
            }
            What::Log => {
                for slot in self.ram.slots() {
                    self.set(slot, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?;
                }
            }
            What::LogManual => self.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, a.min(1))?,
            What::GetLog => return self.log(runs, false),
            What::ClearLog => return self.log(runs, true),
            What::Age => return self.age(runs),
            What::Split | What::Collapse => return self.reshape(what, runs),
            What::Flip => {
                self.flip(a)?;
                let flipped = self.walk();
                self.flip(a)?;
                return Ok(json!({"flipped": flipped?}));
            }
        }
        Ok(json!({}))
    }

    /// All entries of all page tables, judged by KVM, how it maps memory, and the host kernel's own.
    fn walk(&self) -> Result<Value> {
        let path = self.debugfs.join("ve_apf_sptes");
        let text = match fs::read_to_string(&path) {
            // No CPU that raises #VE, so no entry may let it.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
            text => text.with_context(|| path.display().to_string())?,
        };
        let mut walk: Map<String, Value> = text.lines().filter_map(parse_line).collect();
        for name in ["pages_4k", "pages_2m"] {
            let text = fs::read_to_string(self.debugfs.join(name)).unwrap_or_default();
            walk.insert(name.to_owned(), json!(text.trim().parse::<u64>().ok()));
        }
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let slab = meminfo.lines().find_map(|line| line.strip_prefix("Slab:")).unwrap_or_default();
        let slab = slab.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok());
        walk.insert("slab_kib".to_owned(), json!(slab));
        Ok(Value::Object(walk))
    }

    fn flip(&self, gfn: u64) -> Result<()> {
        let path = self.debugfs.join("ve_apf_sptes");
        fs::write(&path, gfn.to_string()).with_context(|| format!("frame {gfn:#x}"))
    }

    fn slot(&self, number: u64) -> Result<kvm_userspace_memory_region> {
        self.ram.slots().nth(usize::try_from(number)?).context("no such memslot")
    }

    fn set(&self, slot: kvm_userspace_memory_region, flags: u32) -> Result<()> {
        let slot = kvm_userspace_memory_region { flags, ..slot };
        // SAFETY: the memory is the VM's own, which is mapped for as long as the process lives; size 0 deletes.
        unsafe { self.vm.set_user_memory_region(slot) }.context("KVM_SET_USER_MEMORY_REGION")
    }

    /// The memslot is away for a moment: moved up, or with 0 deleted.
    fn without(&self, number: u64, up: u64) -> Result<Value> {
        let slot = self.slot(number)?;
        let (guest_phys_addr, memory_size) =
            if up == 0 { (slot.guest_phys_addr, 0) } else { (up, slot.memory_size) };
        self.set(kvm_userspace_memory_region { guest_phys_addr, memory_size, ..slot }, 0)?;
        let between = self.walk();
        self.set(slot, 0)?;
        Ok(json!({"between": between?}))
    }

    /// Makes memslots of their own of `runs` of the first memslot, or one of all.
    fn read_only(&self, runs: &[Run], on: bool) -> Result<()> {
        let whole = self.slot(0)?;
        let parts = slots::cut(whole, runs)?;
        let (old, new) = if on { (vec![whole], parts) } else { (parts, vec![whole]) };
        for slot in old {
            self.set(kvm_userspace_memory_region { memory_size: 0, ..slot }, 0)?;
        }
        new.into_iter().try_for_each(|slot| self.set(slot, slot.flags))
    }

    fn enable(&self, cap: u32, value: u64) -> Result<()> {
        let cap = kvm_enable_cap { cap, args: [value, 0, 0, 0], ..kvm_enable_cap::default() };
        self.vm.enable_cap(&cap).context("KVM_ENABLE_CAP")
    }

    fn log(&self, runs: &[Run], clear: bool) -> Result<Value> {
        let (mut dirty, mut dirty_of) = (0, 0);
        for slot in self.ram.slots() {
            let size = usize::try_from(slot.memory_size)?;
            let mut log = self.vm.get_dirty_log(slot.slot, size).context("KVM_GET_DIRTY_LOG")?;
            dirty += log.iter().map(|word| word.count_ones()).sum::<u32>();
            let first = slot.guest_phys_addr / 4096;
            dirty_of += frames(runs).filter(|gfn| is_set(&log, gfn.wrapping_sub(first))).count();
            if clear {
                self.clear(&slot, &mut log)?;
            }
        }
        Ok(json!({"dirty": dirty, "dirty_of": dirty_of}))
    }

    fn clear(&self, slot: &kvm_userspace_memory_region, log: &mut [u64]) -> Result<()> {
        let mut arg = kvm_clear_dirty_log {
            slot: slot.slot,
            num_pages: u32::try_from(slot.memory_size / 4096)?,
            first_page: 0,
            ..kvm_clear_dirty_log::default()
        };
        arg.__bindgen_anon_1.dirty_bitmap = log.as_mut_ptr().cast();
        // SAFETY: `arg` and the bitmap, which has a bit for each page of the slot, live through the call.
        let rc = unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &arg) };
        if rc < 0 {
            return Err(io::Error::last_os_error()).context("KVM_CLEAR_DIRTY_LOG");
        }
        Ok(())
    }

    /// Marks the pages idle, and asks which of them are: some may not be in the lists that the file knows.
    fn age(&self, runs: &[Run]) -> Result<Value> {
        let bitmap = fs::File::options().read(true).write(true).open(IDLE).context(IDLE)?;
        let pagemap = fs::File::open("/proc/self/pagemap")?;
        let mut idle = 0;
        for gfn in frames(runs) {
            let hva = self.ram.hva(gfn).context("frame outside guest memory")?;
            let mut raw = [0; 8];
            pagemap.read_exact_at(&mut raw, hva / 4096 * 8)?;
            let entry = u64::from_le_bytes(raw);
            // Present, and the frame.
            if entry >> 63 == 0 {
                continue;
            }
            let pfn = entry & ((1 << 55) - 1);
            let (at, bit) = (pfn / 64 * 8, 1u64 << (pfn % 64));
            bitmap.write_all_at(&bit.to_le_bytes(), at)?;
            bitmap.read_exact_at(&mut raw, at)?;
            idle += u64::from(u64::from_le_bytes(raw) & bit != 0);
        }
        Ok(json!({"idle": idle}))
    }

    /// Splits or makes huge pages of the host; tells how much of guest memory is in such before and after.
    fn reshape(&self, what: What, runs: &[Run]) -> Result<Value> {
        let huge_before = self.huge_kib()?;
        let mut refused = 0;
        for run in runs {
            if what == What::Split {
                let start = self.ram.hva(run.first).context("frame outside guest memory")?;
                let end = start + run.count * 4096;
                let words = format!("{},{start:#x},{end:#x}", std::process::id());
                fs::write(SPLIT, words).context(SPLIT)?;
            } else if let Err(error) = self.ram.collapse(run.first, run.count) {
                eprintln!("ve-apf-vmm: test device: collapse: {error:#}");
                refused += 1;
            }
        }
        let huge_after = self.huge_kib()?;
        Ok(
            json!({"refused": refused, "huge_before_kib": huge_before, "huge_after_kib": huge_after}),
        )
    }

    /// Guest memory that the host has in huge pages.
    fn huge_kib(&self) -> Result<u64> {
        let (start, len) = self.ram.host_range();
        let text = fs::read_to_string("/proc/self/smaps")?;
        let mut inside = false;
        let mut kib = 0;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, _)) = first.split_once('-') {
                let from = u64::from_str_radix(from, 16).unwrap_or(0);
                inside = (start..start + len).contains(&from);
            } else if inside && first == "AnonHugePages:" {
                kib += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(kib)
    }
}

/// A name and a number.
fn parse_line(line: &str) -> Option<(String, Value)> {
    let (name, value) = line.split_once(' ')?;
    Some((name.to_owned(), json!(value.trim().parse::<u64>().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_number() {
        assert_eq!(KVM_CLEAR_DIRTY_LOG(), 0xc018_aec0);
    }

    #[test]
    fn lines() {
        assert_eq!(parse_line("armed 12"), Some(("armed".into(), json!(12))));
        assert_eq!(parse_line("armed"), None);
        assert_eq!(parse_line("armed x"), None);
    }
}
