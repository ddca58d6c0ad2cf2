//! kmemleak, where the kernel has it: what is reported goes to the kernel's log, and with its allocation to the console.

use std::io;
use std::time::Duration;

const FILE: &str = "/sys/kernel/debug/kmemleak";

/// Memory younger than this is not looked at (`MSECS_MIN_AGE` in mm/kmemleak.c).
const MIN_AGE: Duration = Duration::from_secs(5);

/// Looks for memory that nothing refers to.
pub fn look() -> io::Result<()> {
    if !std::path::Path::new(FILE).exists() {
        return Ok(());
    }
    // Twice: what was being moved during one look is seen by the next.
    for _ in 0..2 {
        std::thread::sleep(MIN_AGE + Duration::from_secs(1));
        std::fs::write(FILE, "scan")?;
    }
    for line in std::fs::read_to_string(FILE)?.lines() {
        println!("kmemleak: {line}");
    }
    Ok(())
}
