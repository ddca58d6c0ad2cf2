//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::snapshot::campaign::Into;
use crate::snapshot::vcpu;

/// What `--help` prints.
pub const USAGE: &str = "\
usage: ve-apf-vmm --kernel FILE [options]

  --kernel FILE         bzImage or vmlinux
  --bare                FILE is no Linux but an ELF program for the bare machine: every vCPU enters it
  --initrd FILE         initial RAM disk
  --cmdline TEXT        appended to the kernel command line
  --vcpus N             1 to 8 (1)
  --mem-mib N           64 to 3072 (256)
  --slots N             guest memory is N memslots of one size, 1 to 8 (1)
  --thp                 guest memory is huge pages where the host has them
  --mode-label TEXT     copied into every record as \"mode\"
  --timeout-s N         give up after N seconds (120)
  --pin                 pin vCPU threads and the pager to different CPUs
  --hlt-in-guest        do not intercept HLT; without an interrupt to deliver, stock KVM then waits for a page inside
                        KVM_RUN instead of halting the vCPU
  --no-pv-eoi           every end of an interrupt is an exit: the guest is not offered to leave it in memory
  --reboots N           carry out N resets; the next one ends the VM, as the first does without this
  --leave HOW           at the end: finish (deliver what is missing first), exit (at once), close (close the VM, then deliver)
  --hold-fds            another process has all descriptors of the VM open too, until it is killed
  --deadline-ms N       a page that is not there after N ms is lost to who waits for it: 1 to 3600000
  --fail-poison         a page whose memory is poisoned is lost to who touches it; without, KVM signals this process
  --serial-prefix TEXT  before every line of the guest's console
  --snapshots N         once the guest has had pages taken away: save the machine N times and go on from that (0)
  --snapshot-ms MIN-MAX random time before each (20-200)
  --snapshot-early PCT  of so many per cent the time starts at once after the restore, of the others when a page has
                        come that the guest had taken away: its workload goes on (0)
  --snapshot-into HOW   same: in the same VM, at once; rollback: in the same VM, after it ran on for another such time;
                        fresh: in a new process, which has all memory missing at first (fresh)
  --snapshot-seed N     of the random times
  --snapshot-forgets M  MSRs that restores do not put back: en (MSR_KVM_ASYNC_PF_EN), or all (and MSR_KVM_ASYNC_PF_INT)
  --restore FILE        go on from this snapshot instead of booting --kernel; it is written over by the next one
  --restore-us MIN-MAX  time in which a page of a snapshot comes when it is touched (0-500)
  --restore-mib-s N     rate at which the others come (0: they do not)

exit: 0, or 10 + the guest's code; 1 set-up failed; 2 usage; 3 KVM internal error; 4 triple fault; 5 reboot or panic;
      6 timeout; 7 KVM_EXIT_MEMORY_FAULT: a page is lost where the guest can not be told; 8 KVM signalled poison
";

/// A valid command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// bzImage or vmlinux.
    pub kernel: PathBuf,
    /// It is an ELF program for the bare machine: see `bare.rs`.
    pub bare: bool,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line.
    pub cmdline: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// Number of memslots that guest memory is made of.
    pub slots: u32,
    /// Ask the host for huge pages.
    pub thp: bool,
    /// Copied into every record.
    pub mode_label: String,
    /// Seconds until the VMM gives up.
    pub timeout_s: u64,
    /// Pin threads.
    pub pin: bool,
    /// Let the guest halt without an exit.
    pub hlt_in_guest: bool,
    /// Offer the guest to end interrupts in memory.
    pub pv_eoi: bool,
    /// Resets to carry out.
    pub reboots: u32,
    /// What becomes of missing pages at the end.
    pub leave: Leave,
    /// Share the VM's descriptors with a process that outlives this one.
    pub hold_fds: bool,
    /// Milliseconds that a fault may take.
    pub deadline_ms: Option<u32>,
    /// Poison is told to the guest.
    pub fail_poison: bool,
    /// Before every line of the guest's console.
    pub serial_prefix: String,
    /// How many snapshots are taken.
    pub snapshots: u32,
    /// Milliseconds before each.
    pub snapshot_ms: (u32, u32),
    /// Per cent that start at once.
    pub snapshot_early: u32,
    /// Where the machine goes on.
    pub snapshot_into: Into,
    /// Of the random times.
    pub snapshot_seed: Option<u64>,
    /// MSRs that are not put back.
    pub snapshot_forgets: &'static [u32],
    /// Start from this snapshot.
    pub restore: Option<PathBuf>,
    /// Microseconds in which a page of a snapshot comes.
    pub restore_us: (u32, u32),
    /// MiB per second of a snapshot that come by themselves.
    pub restore_mib_s: u32,
}

/// What becomes of pages that are missing when the guest is at its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Leave {
    /// They are delivered.
    #[default]
    Finish,
    /// Nothing: the process ends while threads of the VM wait for them.
    Exit,
    /// The VM is closed while threads wait for them; then they are delivered.
    Close,
}

impl Leave {
    fn parse(text: &str) -> Result<Leave, String> {
        match text {
            "finish" => Ok(Leave::Finish),
            "exit" => Ok(Leave::Exit),
            "close" => Ok(Leave::Close),
            _ => Err(format!("--leave {text}: must be finish, exit or close")),
        }
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Run a guest.
    Run(Box<Args>),
    /// Print the usage.
    Help,
}

impl Args {
    /// Parses arguments without the program's name; the error is one line for the user.
    pub fn parse(raw: Vec<OsString>) -> Result<Parsed, String> {
        let mut p = pico_args::Arguments::from_vec(raw);
        if p.contains(["-h", "--help"]) {
            return Ok(Parsed::Help);
        }
        let args = Args {
            kernel: p.opt_value_from_str("--kernel").map_err(text)?.unwrap_or_default(),
            bare: p.contains("--bare"),
            initrd: p.opt_value_from_str("--initrd").map_err(text)?,
            cmdline: p.opt_value_from_str("--cmdline").map_err(text)?.unwrap_or_default(),
            vcpus: p.opt_value_from_str("--vcpus").map_err(text)?.unwrap_or(1),
            mem_mib: p.opt_value_from_str("--mem-mib").map_err(text)?.unwrap_or(256),
            slots: p.opt_value_from_str("--slots").map_err(text)?.unwrap_or(1),
            thp: p.contains("--thp"),
            mode_label: p.opt_value_from_str("--mode-label").map_err(text)?.unwrap_or_default(),
            timeout_s: p.opt_value_from_str("--timeout-s").map_err(text)?.unwrap_or(120),
            pin: p.contains("--pin"),
            hlt_in_guest: p.contains("--hlt-in-guest"),
            pv_eoi: !p.contains("--no-pv-eoi"),
            reboots: p.opt_value_from_str("--reboots").map_err(text)?.unwrap_or(0),
            leave: p.opt_value_from_fn("--leave", Leave::parse).map_err(text)?.unwrap_or_default(),
            hold_fds: p.contains("--hold-fds"),
            deadline_ms: p.opt_value_from_str("--deadline-ms").map_err(text)?,
            fail_poison: p.contains("--fail-poison"),
            serial_prefix: p
                .opt_value_from_str("--serial-prefix")
                .map_err(text)?
                .unwrap_or_default(),
            snapshots: p.opt_value_from_str("--snapshots").map_err(text)?.unwrap_or(0),
            snapshot_ms: p
                .opt_value_from_fn("--snapshot-ms", range)
                .map_err(text)?
                .unwrap_or((20, 200)),
            snapshot_early: p.opt_value_from_str("--snapshot-early").map_err(text)?.unwrap_or(0),
            snapshot_into: p
                .opt_value_from_fn("--snapshot-into", into)
                .map_err(text)?
                .unwrap_or(Into::Fresh),
            snapshot_seed: p.opt_value_from_str("--snapshot-seed").map_err(text)?,
            snapshot_forgets: p
                .opt_value_from_fn("--snapshot-forgets", vcpu::forgotten)
                .map_err(text)?
                .unwrap_or_default(),
            restore: p.opt_value_from_str("--restore").map_err(text)?,
            restore_us: p
                .opt_value_from_fn("--restore-us", range)
                .map_err(text)?
                .unwrap_or((0, 500)),
            restore_mib_s: p.opt_value_from_str("--restore-mib-s").map_err(text)?.unwrap_or(0),
        };
        if let Some(extra) = p.finish().first() {
            return Err(format!("unknown argument '{}'; see --help", extra.to_string_lossy()));
        }
        args.check()?;
        Ok(Parsed::Run(Box::new(args)))
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=8).contains(&self.vcpus) {
            return Err(format!("--vcpus {}: must be 1 to 8", self.vcpus));
        }
        if !(64..=3072).contains(&self.mem_mib) {
            return Err(format!("--mem-mib {}: must be 64 to 3072", self.mem_mib));
        }
        if self.bare && self.reboots > 0 {
            return Err("--reboots: not with --bare".into());
        }
        // Huge pages lie in one memslot each.
        if !(1..=8).contains(&self.slots) || !self.mem_mib.is_multiple_of(2 * self.slots) {
            return Err(format!("--slots {}: must be 1 to 8, of whole 2 MiB", self.slots));
        }
        if self.timeout_s == 0 {
            return Err("--timeout-s 0: must be at least 1".into());
        }
        if let Some(ms) = self.deadline_ms.filter(|ms| !(1..=3_600_000).contains(ms)) {
            return Err(format!("--deadline-ms {ms}: must be 1 to 3600000"));
        }
        let kernel = Some(&self.kernel).filter(|_| self.restore.is_none());
        if kernel.is_some_and(|path| path.as_os_str().is_empty()) {
            return Err("--kernel or --restore is needed; see --help".into());
        }
        if self.snapshot_early > 100 {
            return Err(format!("--snapshot-early {}: must be 0 to 100", self.snapshot_early));
        }
        if self.snapshots != 0 && self.bare {
            return Err("--snapshots: not with --bare".into());
        }
        if self.snapshots != 0 && self.reboots != 0 {
            return Err("--snapshots: not with --reboots".into());
        }
        for (option, path) in [("--kernel", kernel), ("--initrd", self.initrd.as_ref())] {
            if let Some(path) = path.filter(|p| !p.is_file()) {
                return Err(format!("{option} {}: no such file", path.display()));
            }
        }
        Ok(())
    }
}

/// `N` or `MIN-MAX`.
fn range(text: &str) -> Result<(u32, u32), String> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    match (min.parse(), max.parse()) {
        (Ok(min), Ok(max)) if min <= max => Ok((min, max)),
        _ => Err(format!("'{text}' is no MIN-MAX")),
    }
}

fn into(text: &str) -> Result<Into, String> {
    Into::from_name(text).ok_or_else(|| format!("'{text}' is none of same, rollback, fresh"))
}

fn text(error: pico_args::Error) -> String {
    format!("{error}; see --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Parsed, String> {
        Args::parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn good() {
        let Ok(Parsed::Run(args)) = parse(&["--kernel", "Cargo.toml", "--vcpus", "4", "--pin"])
        else {
            unreachable!("a valid command line")
        };
        assert_eq!((args.vcpus, args.mem_mib, args.pin), (4, 256, true));
        assert_eq!((args.deadline_ms, args.fail_poison, args.pv_eoi), (None, false, true));
        assert_eq!(parse(&["--help"]), Ok(Parsed::Help));
        let Ok(Parsed::Run(args)) =
            parse(&["--restore", "x", "--snapshot-ms", "5-7", "--no-pv-eoi"])
        else {
            unreachable!("a valid command line")
        };
        assert_eq!((args.snapshot_ms, args.snapshot_into), ((5, 7), Into::Fresh));
        assert!(!args.pv_eoi);
    }

    #[test]
    fn bad_arguments_give_one_line() {
        for words in [
            &["--vcpus", "4"][..],
            &["--kernel", "Cargo.toml", "--vcpus", "9"],
            &["--kernel", "Cargo.toml", "--vcpus", "x"],
            &["--kernel", "Cargo.toml", "--mem-mib", "1"],
            &["--kernel", "Cargo.toml", "--timeout-s", "0"],
            &["--kernel", "Cargo.toml", "--slots", "0"],
            &["--kernel", "Cargo.toml", "--slots", "3"],
            &["--kernel", "Cargo.toml", "--leave", "later"],
            &["--kernel", "Cargo.toml", "--bare", "--reboots", "1"],
            &["--kernel", "Cargo.toml", "--deadline-ms", "0"],
            &["--kernel", "Cargo.toml", "--deadline-ms", "3600001"],
            &["--kernel", "Cargo.toml", "--nonsense"],
            &["--kernel", "/nonexistent"],
            &["--kernel", "Cargo.toml", "--snapshots", "x"],
            &["--kernel", "Cargo.toml", "--snapshots", "1", "--bare"],
            &["--kernel", "Cargo.toml", "--snapshot-ms", "9-1"],
            &["--kernel", "Cargo.toml", "--snapshot-early", "101"],
            &["--kernel", "Cargo.toml", "--snapshot-into", "nowhere"],
        ] {
            let error = parse(words).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{error}");
        }
    }
}
