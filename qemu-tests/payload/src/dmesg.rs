//! The kernel's log, and what in it means trouble.

/// Any of these in a line makes it bad.
const BAD: [&str; 18] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "blocked for more than",
    "inconsistent lock state",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "ODEBUG",
    "new suspected memory leaks",
    "suspicious RCU usage",
    "rcu_preempt detected stalls",
    "self-detected stall",
    "soft lockup",
    "KASAN",
    "general protection fault",
    "unchecked MSR access error",
    "scheduling while atomic",
];

/// The whole log.
pub fn read() -> String {
    const SIZE_BUFFER: libc::c_int = 10;
    const READ_ALL: libc::c_int = 3;
    // SAFETY: this action takes no buffer.
    let size = unsafe { libc::klogctl(SIZE_BUFFER, std::ptr::null_mut(), 0) };
    let mut raw = vec![0u8; usize::try_from(size).unwrap_or(0)];
    // SAFETY: the buffer is as long as the call is told; `size` came from the kernel and fits.
    let n = unsafe { libc::klogctl(READ_ALL, raw.as_mut_ptr().cast(), size.max(0)) };
    raw.truncate(usize::try_from(n).unwrap_or(0));
    String::from_utf8_lossy(&raw).into_owned()
}

/// Lines that mean trouble, at most 40.
pub fn bad_lines() -> Vec<String> {
    filter(&read(), is_bad)
}

/// Lines that contain `word`, at most 40.
pub fn lines_with(word: &str) -> Vec<String> {
    filter(&read(), |line| line.contains(word))
}

fn filter(log: &str, keep: impl Fn(&str) -> bool) -> Vec<String> {
    log.lines()
        .filter(|line| keep(line))
        .take(40)
        .map(|line| line.chars().take(300).collect())
        .collect()
}

fn is_bad(line: &str) -> bool {
    // The command line is not an event.
    !line.contains("ommand line:") && BAD.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble() {
        assert!(is_bad("<4>[    1.0] WARNING: CPU: 0 PID: 1 at arch/x86/kernel/kvm.c:1"));
        assert!(is_bad("[    1.0] INFO: task touch0:55 blocked for more than 30 seconds."));
        assert!(!is_bad("[    0.0] Kernel command line: x=WARNING:"));
        assert!(!is_bad("[    0.0] Linux version 6.12"));
    }
}
