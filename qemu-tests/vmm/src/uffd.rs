//! userfaultfd (include/uapi/linux/userfaultfd.h): registration, requests, answers.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use numbers::{
    UFFDIO_API, UFFDIO_COPY, UFFDIO_POISON, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
    UFFDIO_ZEROPAGE,
};

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const REGISTER_MODE_MISSING: u64 = 1;
const COPY_MODE_DONTWAKE: u64 = 1;
/// Since Linux 6.6.
const FEATURE_POISON: u64 = 1 << 14;
const EVENT_PAGEFAULT: u8 = 0x12;
const PAGE: u64 = 4096;

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

#[repr(C)]
struct Poison {
    range: Range,
    mode: u64,
    updated: i64,
}

/// struct uffd_msg, as far as page faults need it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    feature: u64,
}

mod numbers {
    use super::{Api, Copy, Poison, Range, Register, ZeroPage};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iowr_nr};

    ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, Api);
    ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, Register);
    ioctl_ior_nr!(UFFDIO_UNREGISTER, 0xaa, 0x01, Range);
    ioctl_ior_nr!(UFFDIO_WAKE, 0xaa, 0x02, Range);
    ioctl_iowr_nr!(UFFDIO_COPY, 0xaa, 0x03, Copy);
    ioctl_iowr_nr!(UFFDIO_ZEROPAGE, 0xaa, 0x04, ZeroPage);
    ioctl_iowr_nr!(UFFDIO_POISON, 0xaa, 0x08, Poison);
}

/// Result of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The page is there now.
    Delivered,
    /// It was there already.
    Present,
}

/// An open userfaultfd.
pub struct Uffd {
    file: File,
    can_poison: bool,
}

impl Uffd {
    /// Opens one, non-blocking, for kernel-mode faults too: those are KVM's.
    pub fn open() -> io::Result<Uffd> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        debug_assert_eq!(flags & UFFD_USER_MODE_ONLY, 0);
        // SAFETY: takes plain flags and returns a descriptor or an error.
        let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        let file = unsafe { File::from_raw_fd(raw as RawFd) };
        let shake_hands = |features| {
            let mut api = Api { api: UFFD_API, features, ioctls: 0 };
            // SAFETY: `Api` is struct uffdio_api, and lives through the call.
            check(unsafe { ioctl_with_mut_ref(&file, UFFDIO_API(), &mut api) })
        };
        let can_poison = shake_hands(FEATURE_POISON).is_ok();
        if !can_poison {
            shake_hands(0)?;
        }
        Ok(Uffd { file, can_poison })
    }

    /// Missing pages of this range are ours to deliver from now on.
    pub fn register(&self, start: u64, len: u64) -> io::Result<()> {
        let mut arg =
            Register { range: Range { start, len }, mode: REGISTER_MODE_MISSING, ioctls: 0 };
        // SAFETY: `Register` is struct uffdio_register, and lives through the call.
        check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut arg) })
    }

    /// Missing pages of this range are the kernel's again; waiters go on.
    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let arg = Range { start, len };
        // SAFETY: `Range` is struct uffdio_range, and lives through the call.
        check(unsafe { ioctl_with_ref(&self.file, UFFDIO_UNREGISTER(), &arg) })
    }

    /// Host addresses that somebody waits for; empty when there are none now.
    pub fn read_faults(&self, into: &mut Vec<u64>) -> io::Result<()> {
        let mut raw = [0u8; 32 * 16];
        let n = match (&self.file).read(&mut raw) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        for one in raw[..n].chunks_exact(size_of::<Message>()) {
            // SAFETY: the chunk has the size of a Message, which is integers only; unaligned reads are asked for.
            let message = unsafe { one.as_ptr().cast::<Message>().read_unaligned() };
            if message.event == EVENT_PAGEFAULT {
                into.push(message.address & !(PAGE - 1));
            }
        }
        Ok(())
    }

    /// Puts `page` at `dst`. Waiters go on at once if `wake`.
    pub fn copy(&self, dst: u64, page: &[u8; PAGE as usize], wake: bool) -> io::Result<Answer> {
        let mode = if wake { 0 } else { COPY_MODE_DONTWAKE };
        loop {
            let mut arg = Copy { dst, src: page.as_ptr() as u64, len: PAGE, mode, copy: 0 };
            // SAFETY: `Copy` is struct uffdio_copy; `page` is readable for PAGE bytes; `dst` is only ever written if
            // it lies in a registered range, which is guest memory and not referenced by Rust code.
            match check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_COPY(), &mut arg) }) {
                Ok(()) => return Ok(Answer::Delivered),
                // The mapping is being changed (another thread evicts): again.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                    return self.wake(dst, PAGE).map(|()| Answer::Present);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Puts zeroes at `dst`, for a page that nobody evicted.
    pub fn zero(&self, dst: u64) -> io::Result<Answer> {
        loop {
            let mut arg = ZeroPage { range: Range { start: dst, len: PAGE }, mode: 0, zeropage: 0 };
            // SAFETY: `ZeroPage` is struct uffdio_zeropage; as for `copy`.
            match check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_ZEROPAGE(), &mut arg) }) {
                Ok(()) => return Ok(Answer::Delivered),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                    return self.wake(dst, PAGE).map(|()| Answer::Present);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Says that the page at `dst`, which is missing, is lost: who waits for it, or touches it, gets SIGBUS.
    pub fn poison(&self, dst: u64) -> io::Result<()> {
        if !self.can_poison {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        loop {
            let mut arg = Poison { range: Range { start: dst, len: PAGE }, mode: 0, updated: 0 };
            // SAFETY: `Poison` is struct uffdio_poison; it changes no page, and nothing in a range that is not registered.
            match check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_POISON(), &mut arg) }) {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result,
            }
        }
    }

    /// Lets waiters in this range try again.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let arg = Range { start, len };
        // SAFETY: `Range` is struct uffdio_range, and lives through the call.
        check(unsafe { ioctl_with_ref(&self.file, UFFDIO_WAKE(), &arg) })
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const _: () = assert!(size_of::<Message>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers() {
        assert_eq!(UFFDIO_API(), 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER(), 0xc020_aa00);
        assert_eq!(UFFDIO_UNREGISTER(), 0x8010_aa01);
        assert_eq!(UFFDIO_WAKE(), 0x8010_aa02);
        assert_eq!(UFFDIO_COPY(), 0xc028_aa03);
        assert_eq!(UFFDIO_ZEROPAGE(), 0xc020_aa04);
        assert_eq!(UFFDIO_POISON(), 0xc020_aa08);
    }
}
