//! What an init does for its system: mounts, network, power.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;

/// Target, type, data.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("/proc", "proc", ""),
    ("/sys", "sysfs", ""),
    ("/dev", "devtmpfs", ""),
    ("/sys/kernel/debug", "debugfs", ""),
    ("/sys/kernel/tracing", "tracefs", ""),
    ("/sys/fs/cgroup", "cgroup2", ""),
    ("/tmp", "tmpfs", ""),
];

/// Mounts what there is, gives the program a console, and keeps locked pages where they are.
pub fn mount_all() {
    for (target, kind, data) in MOUNTS {
        // It may exist, and a kernel may lack the file system: whoever needs it says so.
        let _ = fs::create_dir_all(target);
        if let Err(error) = mount(target, kind, data) {
            println!("init: mount {target}: {error}");
        }
    }
    // A page that compaction moves would change its frame behind the pager's back.
    let _ = fs::write("/proc/sys/vm/compact_unevictable_allowed", "0");
}

/// Mounts a file system that has no device.
pub fn mount(target: &str, kind: &str, data: &str) -> io::Result<()> {
    mount_device(kind, target, kind, data)
}

/// Mounts the file system on a device.
pub fn mount_device(source: &str, target: &str, kind: &str, data: &str) -> io::Result<()> {
    let [source, target, kind, data] = [source, target, kind, data].map(CString::new);
    let (source, target, kind, data) = (source?, target?, kind?, data?);
    // SAFETY: all strings are NUL-terminated and live through the call.
    let rc = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Loads the kernel modules in a directory, in the order of their names; a kernel that has all it needs comes without.
pub fn load_modules(dir: &str) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    for path in paths {
        let file = fs::File::open(&path)?;
        // SAFETY: the descriptor is open, the parameters are an empty C string.
        let rc =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if rc != 0 {
            let error = io::Error::last_os_error();
            return Err(io::Error::other(format!("{}: {error}", path.display())));
        }
    }
    Ok(())
}

/// Brings the loopback interface up: migration between two processes needs it.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: ifreq is plain bytes; all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: takes plain integers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `request` is an ifreq and lives through the call.
    let rc = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &request) };
    let result = if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: `socket` is ours and not used again.
    unsafe { libc::close(socket) };
    result
}

/// Restarts: under our VMM, which has no power switch, this ends the VM.
pub fn restart() {
    // SAFETY: no pointers; nothing in this system needs an orderly end.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}

/// Does nothing, for ever.
pub fn stay() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Waits until the console has sent everything, then switches off.
pub fn power_off() -> ! {
    for fd in [1, 2] {
        // SAFETY: takes a descriptor number; a closed one gives an error.
        unsafe { libc::tcdrain(fd) };
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    // SAFETY: no pointers; nothing in this system needs an orderly end.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
        libc::reboot(libc::RB_AUTOBOOT);
    }
    stay()
}
