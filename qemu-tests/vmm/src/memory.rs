//! Guest memory: one anonymous mapping from guest physical address 0.

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The mapping, and where it is.
pub struct Ram {
    /// For copies by guest physical address.
    pub mem: GuestMemoryMmap,
    base: u64,
    len: u64,
}

impl Ram {
    /// Maps `mem_mib` MiB. Small pages only: with huge ones an evicted page would first have to split one, and
    /// neighbours would come and go together.
    pub fn new(mem_mib: u32) -> Result<Ram> {
        let len = u64::from(mem_mib) << 20;
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(len)?)])
            .with_context(|| format!("cannot map {mem_mib} MiB of guest memory"))?;
        let base = mem
            .get_host_address(GuestAddress(0))
            .context("guest memory has no host address")? as u64;
        let ram = Ram { mem, base, len };
        ram.advise(0, len, libc::MADV_NOHUGEPAGE)?;
        Ok(ram)
    }

    /// Makes it the VM's slot 0.
    pub fn register(&self, vm: &VmFd) -> Result<()> {
        for (slot, region) in self.mem.iter().enumerate() {
            let entry = kvm_userspace_memory_region {
                slot: u32::try_from(slot)?,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: self.base,
            };
            // SAFETY: the mapping lives as long as `self`, which the machine keeps until its vCPUs are gone.
            unsafe { vm.set_user_memory_region(entry) }.context("KVM refused guest memory")?;
        }
        Ok(())
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

    /// Makes all of it present, so that nothing is missing that nobody evicted.
    pub fn populate(&self) -> Result<()> {
        self.advise(0, self.len, libc::MADV_POPULATE_WRITE)
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
