//! The machines that L1 runs on, and what is different about each.

use serde::Deserialize;
use std::time::Duration;

/// An emulated machine with a way to virtualise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lane {
    /// QEMU's TCG: AMD SVM with nested paging
    #[default]
    Svm,
    /// Bochs: Intel VMX with EPT and the EPT-violation #VE
    Vmx,
}

/// Millions of instructions that are a second for a CPU in Bochs, if the boot does not say. It emulates 40 to 110 million in a
/// second of the host, so that time passes more slowly there the more they are; where a machine computes.
pub(crate) const BOCHS_MIPS: u32 = 200;

impl Lane {
    /// As in the case table and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Svm => "svm",
            Self::Vmx => "vmx",
        }
    }

    /// For the report; L1 has so many CPUs, or one of these numbers of them, and on vmx so many million instructions are a
    /// second for each.
    pub(crate) fn about(self, cpus: &[u32], mips: &[u32]) -> String {
        let what = match self {
            Self::Svm => "QEMU TCG, AMD SVM with nested paging",
            Self::Vmx => "Bochs, Intel VMX with EPT and #VE",
        };
        let any_of = |numbers: &[u32]| {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            numbers.join(" or ")
        };
        let plural = if cpus == [1] { "" } else { "s" };
        let mut text =
            format!("{what}, {} CPU{plural}; Linux 6.12 as host and as guest", any_of(cpus));
        if !mips.is_empty() {
            text.push_str(&format!("; a microsecond is {} instructions", any_of(mips)));
        }
        text
    }

    /// CPUs of L1, if the boot does not say.
    pub(crate) fn cpus(self) -> u32 {
        match self {
            Self::Svm => 2,
            // Two are emulated in turns and take four times as long.
            Self::Vmx => 1,
        }
    }

    /// Memory of L1, if the boot does not say.
    pub(crate) fn mem_mib(self) -> u32 {
        match self {
            Self::Svm => 3072,
            Self::Vmx => 1024,
        }
    }

    /// Kernel parameters of L1, where Bochs's CPUs execute `mips` million instructions in a second.
    pub(crate) fn l1_cmdline(self, cpus: u32, mips: u32) -> String {
        if self == Self::Svm {
            // L1 measures its TSC twice, and in an emulator the second one may differ by a thousandth: a VM that was saved before it
            // then has another frequency than its host, and there is no scaling.
            return "console=ttyS0 panic=-1 quiet kvm.tsc_tolerance_ppm=5000".to_owned();
        }
        // At the default speed a record takes seconds. A reboot would start from the beginning for ever, so a panic ends
        // in a triple fault.
        let mut text = String::from("console=ttyS0,115200 panic=-1 quiet reboot=t");
        // CPUID names a TSC frequency, but here the TSC counts instructions; told the right one, L1 has clocks and timers
        // that agree.
        text.push_str(&format!(" tsc_early_khz={}", u64::from(mips) * 1000));
        // Half-emulated features that the kernel complains about or tries again and again.
        text.push_str(" noxsave clearcpuid=tsc_deadline_timer,aperfmperf");
        if cpus == 1 {
            // CPUID has no topology leaf then, and the older one knows of more cores than there are.
            text.push_str(",ht");
        } else {
            // A CPU in MWAIT often does not see here what another one writes: it slept on until its next timer, and with it a
            // task that was woken there (docs/notes/0004).
            text.push_str(" idle=halt");
        }
        text.push(' ');
        text.push_str(QUICK);
        text
    }

    /// Kernel parameters of L2, in every mode.
    pub(crate) fn l2_cmdline(self) -> String {
        match self {
            Self::Svm => String::new(),
            // In hardware mode only movable memory may go missing. The other modes get the same memory, to be comparable.
            // Where programs lie is chance else, and counts of instructions depend on it.
            Self::Vmx => format!("movablecore=128M norandmaps {QUICK}"),
        }
    }

    /// Seconds of the host that a second of L1 may take; on vmx with [`BOCHS_MIPS`].
    pub(crate) fn slowness(self) -> u32 {
        match self {
            Self::Svm => 1,
            Self::Vmx => 10,
        }
    }

    /// What booting L1 may take, and again switching it off.
    pub(crate) fn boot_limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Svm => 120,
            Self::Vmx => 300,
        })
    }
}

/// Hundreds of terminals and three serial ports that nobody uses, each of which takes time to set up.
const QUICK: &str = "pty.legacy_count=0 8250.nr_uarts=1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_machine_whose_tsc_counts_instructions_is_told_its_frequency() {
        let svm = Lane::Svm.l1_cmdline(2, BOCHS_MIPS);
        assert!(!svm.contains("khz") && svm.ends_with("tsc_tolerance_ppm=5000"), "{svm}");
        let one = Lane::Vmx.l1_cmdline(1, BOCHS_MIPS);
        assert!(one.contains("tsc_early_khz=200000") && one.contains(",ht "), "{one}");
        let two = Lane::Vmx.l1_cmdline(2, 1000);
        assert!(!two.contains(",ht") && two.contains("idle=halt"), "{two}");
        assert!(two.contains("tsc_early_khz=1000000"), "{two}");
    }
}
