//! Guest memory: one anonymous mapping from guest physical address 0, until a test puts something else behind a page.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use ve_apf_testdev::Run;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::sigbus;

/// The mapping, and where it is.
pub struct Ram {
    /// For copies by guest physical address.
    pub mem: GuestMemoryMmap,
    base: u64,
    len: u64,
    slots: u32,
}

const HUGE: u64 = 2 << 20;
/// What a mapping of guest memory allows.
const ALL: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

impl Ram {
    /// Maps `mem_mib` MiB, for KVM in `slots` memslots of one size. With `huge`, in huge pages where the host has them.
    /// Else in small ones only: an evicted page would first have to split one, and neighbours would come and go together.
    pub fn new(mem_mib: u32, slots: u32, huge: bool) -> Result<Ram> {
        let len = u64::from(mem_mib) << 20;
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // Room to begin where a huge page may.
        let room = usize::try_from(len + HUGE)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), room, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot map {mem_mib} MiB of guest memory"));
        }
        let base = (start as u64).next_multiple_of(HUGE);
        // SAFETY: `base` is aligned and followed by `len` bytes of the mapping just made, which is never unmapped.
        let region =
            unsafe { MmapRegion::build_raw(base as *mut u8, usize::try_from(len)?, prot, flags) }?;
        let region = GuestRegionMmap::new(region, GuestAddress(0)).context("guest memory")?;
        let mem = GuestMemoryMmap::from_regions(vec![region])?;
        let ram = Ram { mem, base, len, slots };
        ram.advise(0, len, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE })?;
        Ok(ram)
    }

    /// Makes it the VM's, from slot 0 on.
    pub fn register(&self, vm: &VmFd) -> Result<()> {
        for entry in self.slots() {
            // SAFETY: the mapping lives as long as the process.
            unsafe { vm.set_user_memory_region(entry) }.context("KVM refused guest memory")?;
        }
        Ok(())
    }

    /// The memslots.
    pub fn slots(&self) -> impl Iterator<Item = kvm_userspace_memory_region> + use<> {
        let (base, size) = (self.base, self.len / u64::from(self.slots));
        (0..self.slots).map(move |slot| kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: u64::from(slot) * size,
            memory_size: size,
            userspace_addr: base + u64::from(slot) * size,
        })
    }

    /// Host address of a frame, if it is guest memory.
    pub fn hva(&self, gfn: u64) -> Option<u64> {
        let gpa = gfn.checked_mul(4096)?;
        (gpa < self.len).then(|| self.base + gpa)
    }

    /// Frame at a host address.
    pub fn gfn(&self, hva: u64) -> Option<u64> {
        let gpa = hva.checked_sub(self.base)?;
        (gpa < self.len).then_some(gpa / 4096)
    }

    /// Start and length of the mapping.
    pub fn host_range(&self) -> (u64, u64) {
        (self.base, self.len)
    }

    /// Drops `count` frames from `gfn` on: the next access finds them missing.
    pub fn drop_frames(&self, gfn: u64, count: u64) -> Result<()> {
        self.advise(gfn * 4096, count * 4096, libc::MADV_DONTNEED)
    }

    /// Takes away this process' own access to `count` frames from `gfn` on, or gives it back: nobody can get such a page.
    pub fn set_lost(&self, gfn: u64, count: u64, lost: bool) -> Result<()> {
        self.allow(gfn, count, if lost { libc::PROT_NONE } else { ALL })
    }

    /// Lets nobody write to these frames, by this process' mapping, or lets all again.
    pub fn protect(&self, runs: &[Run], on: bool) -> Result<()> {
        let prot = if on { libc::PROT_READ } else { ALL };
        runs.iter().try_for_each(|run| self.allow(run.first, run.count, prot))
    }

    fn allow(&self, gfn: u64, count: u64, prot: libc::c_int) -> Result<()> {
        let (offset, len) = (gfn * 4096, count * 4096);
        anyhow::ensure!(offset + len <= self.len, "range outside guest memory");
        // SAFETY: the range lies inside our own mapping (checked above); nobody holds references into guest memory, and
        // vm-memory's copies of such frames are asked for by nobody.
        let rc = unsafe {
            libc::mprotect((self.base + offset) as *mut libc::c_void, usize::try_from(len)?, prot)
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error()).context("mprotect of guest memory")
        }
    }

    /// A child process gets none of it.
    pub fn keep_from_children(&self) -> Result<()> {
        self.advise(0, self.len, libc::MADV_DONTFORK)
    }

    /// Puts the start of a file behind a frame, of which nothing is left in memory.
    pub fn back_by_file(&self, gfn: u64, file: &File) -> Result<()> {
        self.map_again(gfn, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Puts new anonymous memory behind a frame, in place of whatever is there.
    pub fn back_by_memory(&self, gfn: u64) -> Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.map_again(gfn, flags, -1)?;
        self.advise(gfn * 4096, 4096, libc::MADV_NOHUGEPAGE)
    }

    /// Breaks the host's memory behind a frame, for good; needs CAP_SYS_ADMIN and CONFIG_MEMORY_FAILURE.
    pub fn poison(&self, gfn: u64) -> Result<()> {
        sigbus::injecting(|| self.advise(gfn * 4096, 4096, libc::MADV_HWPOISON))
    }

    fn map_again(&self, gfn: u64, flags: libc::c_int, fd: libc::c_int) -> Result<()> {
        let at = self.hva(gfn).context("frame outside guest memory")? as *mut libc::c_void;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: replaces one page inside our own mapping (checked by `hva`); nobody holds references into guest memory.
        let mapped = unsafe { libc::mmap(at, 4096, prot, flags | libc::MAP_FIXED, fd, 0) };
        if mapped == at {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error()).context("mmap of one page of guest memory")
        }
    }

    /// Makes all of it present, so that nothing is missing that nobody evicted.
    pub fn populate(&self) -> Result<()> {
        self.advise(0, self.len, libc::MADV_POPULATE_WRITE)
    }

    /// Huge pages in place of `count` frames from `gfn` on.
    pub fn collapse(&self, gfn: u64, count: u64) -> Result<()> {
        self.advise(gfn * 4096, count * 4096, libc::MADV_COLLAPSE)
    }

    fn advise(&self, offset: u64, len: u64, advice: libc::c_int) -> Result<()> {
        anyhow::ensure!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "range outside guest memory"
        );
        // SAFETY: the range lies inside our own mapping (checked above); nobody holds references into guest memory.
        let rc = unsafe {
            libc::madvise((self.base + offset) as *mut libc::c_void, usize::try_from(len)?, advice)
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error()).context("madvise of guest memory")
        }
    }
}
