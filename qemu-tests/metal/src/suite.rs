//! What a test is, how it is run, and the record it prints.

use core::fmt::{Display, Write};

use ve_apf_metal::abi::access::{Bitmap, RingAccess};
use ve_apf_metal::abi::msr::Caps;
use ve_apf_metal::counters::{NAMES, Values};
use ve_apf_metal::cpu::{self, Cpu, Mode};
use ve_apf_metal::{platform, sys};
use ve_apf_testdev::PolicyArgs;

use crate::options::Options;
use crate::text::Text;
use crate::{arena, device, layout, tests};

/// What this boot is about.
pub(crate) struct Boot {
    /// How faults are delivered.
    pub(crate) mode: Mode,
    /// CPUs that run.
    pub(crate) cpus: usize,
    /// The command line.
    pub(crate) options: Options,
    /// Time-stamp counter at the first instruction.
    pub(crate) entered: u64,
    /// And when the first CPU could take interrupts.
    pub(crate) ready: u64,
}

/// Cycles of the TSC that the option `spin` is, if it is not given.
const SPIN: u64 = 100_000_000;

impl Boot {
    /// Runs so many times the option `spin`.
    pub(crate) fn spin(&self, times: u64) {
        self.until(times, || false);
    }

    /// Runs until it holds, but not longer than so many times the option `spin`; does it?
    pub(crate) fn until(&self, times: u64, mut holds: impl FnMut() -> bool) -> bool {
        let end = sys::tsc() + times * self.options.number("spin", SPIN);
        while sys::tsc() < end {
            if holds() {
                return true;
            }
            core::hint::spin_loop();
        }
        holds()
    }
}

/// One test.
pub(crate) struct Test {
    /// Its name, and its record's `workload`.
    pub(crate) name: &'static str,
    /// Its file.
    pub(crate) group: &'static str,
    /// Hardware mode only.
    hardware: bool,
    run: fn(&mut Check<'_>),
}

impl Test {
    /// One that runs in either mode.
    pub(crate) const fn any(
        group: &'static str,
        name: &'static str,
        run: fn(&mut Check<'_>),
    ) -> Self {
        Self { name, group, hardware: false, run }
    }

    /// One that runs in hardware mode only; in the other it is left out.
    pub(crate) const fn hardware(
        group: &'static str,
        name: &'static str,
        run: fn(&mut Check<'_>),
    ) -> Self {
        Self { name, group, hardware: true, run }
    }
}

/// A running test.
pub(crate) struct Check<'a> {
    /// This boot.
    pub(crate) boot: &'a Boot,
    /// This CPU.
    pub(crate) cpu: &'static Cpu,
    /// Its test's name.
    pub(crate) name: &'static str,
    body: Text<3000>,
    why: Text<400>,
    checks: u32,
    failed: u32,
    wrong_bytes: u64,
    may_rescue: bool,
}

/// Runs what the command line names; the exit code.
pub(crate) fn run(boot: &Boot) -> u8 {
    let cpu = cpu::this();
    platform::set_parkable(&arena::range());
    let caps = cpu::caps().unwrap_or(Caps::empty());
    let wanted = if boot.mode == Mode::Hardware { Caps::HARDWARE } else { Caps::INJECTED };
    if !caps.contains(wanted) || switch_on(cpu, boot.mode).is_err() {
        device::report(
            "",
            "{\"kind\":\"error\",\"where\":\"metal\",\"error\":\"mode not offered by this host\"}",
        );
        return 3;
    }
    print_boot(boot, caps);
    device::declare(layout::own_frames().into_iter().chain([arena::frames(0..arena::PAGES)]));
    let mut code = 0;
    for word in boot.options.text("run", "park").split('+') {
        let mut found = false;
        for test in tests::ALL.iter().filter(|test| [test.name, test.group].contains(&word)) {
            found = true;
            if !test.hardware || boot.mode == Mode::Hardware {
                code |= u8::from(!run_one(boot, cpu, test));
            }
        }
        if !found {
            device::report(
                "",
                "{\"kind\":\"error\",\"where\":\"metal\",\"error\":\"no such test\"}",
            );
            return 3;
        }
    }
    code
}

/// Runs `test` with the kernel's own pages declared: they raise #VE too.
pub(crate) fn armed(check: &mut Check<'_>, test: fn(&mut Check<'_>)) {
    let ranges = layout::own_frames().map(|own| (own.start * 4096, (own.end - own.start) * 4096));
    for (gpa, length) in ranges {
        let answer = check.cpu.declare(gpa, length);
        check.equal("RANGE", answer.cast_unsigned(), 0);
    }
    test(check);
    for (gpa, length) in ranges {
        check.cpu.withdraw(gpa, length);
    }
}

/// Switches `mode` on, on this CPU; the arena is declared.
pub(crate) fn switch_on(cpu: &'static Cpu, mode: Mode) -> Result<(), sys::Refused> {
    cpu.enable(mode)?;
    let range = arena::range();
    match mode {
        Mode::Hardware if cpu.declare(range.start, range.end - range.start) != 0 => {
            Err(sys::Refused)
        }
        _ => Ok(()),
    }
}

fn print_boot(boot: &Boot, caps: Caps) {
    let mut text = Text::<400>::new();
    let _ = text.write_char('{');
    text.string("kind", "boot");
    text.string("delivery", delivery(boot));
    text.field("caps", caps.bits());
    text.field("tsc_to_ready", boot.ready - boot.entered);
    text.field("tsc_to_record", sys::tsc() - boot.entered);
    let _ = text.write_char('}');
    device::report("", text.as_str());
}

fn delivery(boot: &Boot) -> &'static str {
    if boot.mode == Mode::Hardware { "hardware" } else { "injected" }
}

/// True if it passed.
fn run_one(boot: &Boot, cpu: &'static Cpu, test: &Test) -> bool {
    device::set_policy([], PolicyArgs::fixed(0));
    let before = cpu.counters.values();
    let began = sys::tsc();
    let mut check = Check {
        boot,
        cpu,
        name: test.name,
        body: Text::new(),
        why: Text::new(),
        checks: 0,
        failed: 0,
        wrong_bytes: 0,
        may_rescue: false,
    };
    (test.run)(&mut check);
    device::restore_all();
    let counts = cpu.counters.values().since(before);
    if !check.may_rescue {
        check.equal("faults that the host did not know", counts.get("rescued"), 0);
    }
    check.equal("slots left in use", cpu.ring().bits(Bitmap::Active), 0);
    check.number("tsc", sys::tsc() - began);
    check.print(&counts);
    check.failed == 0
}

impl Check<'_> {
    /// Something that must hold.
    pub(crate) fn that(&mut self, what: impl Display, holds: bool) {
        self.checks += 1;
        if !holds {
            self.failed += 1;
            let _ = write!(self.why, "{what}; ");
        }
    }

    /// A number that must be this.
    pub(crate) fn equal(&mut self, what: impl Display, is: u64, wanted: u64) {
        self.that(format_args!("{what}: {is:#x}, not {wanted:#x}"), is == wanted);
    }

    /// Everything held so far.
    pub(crate) fn passes(&self) -> bool {
        self.failed == 0
    }

    /// Data that must be right.
    pub(crate) fn right(&mut self, wrong_bytes: u64) {
        self.wrong_bytes += wrong_bytes;
        self.that(format_args!("{wrong_bytes} wrong bytes"), wrong_bytes == 0);
    }

    /// A figure.
    pub(crate) fn number(&mut self, name: &str, value: u64) {
        self.body.field(name, value);
    }

    /// A figure with three decimals.
    pub(crate) fn ratio(&mut self, name: &str, of: u64, to: u64) {
        let thousandths = of * 1000 / to.max(1);
        self.body.field(name, format_args!("{}.{:03}", thousandths / 1000, thousandths % 1000));
    }

    /// A list of texts.
    pub(crate) fn list(&mut self, name: &str, items: impl Iterator<Item = impl Display>) {
        self.body.field(name, "[");
        for (i, item) in items.enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(self.body, "{comma}\"{item}\"");
        }
        let _ = self.body.write_char(']');
    }

    /// This test breaks the protocol, and may meet what never happens otherwise.
    pub(crate) fn may_rescue(&mut self) {
        self.may_rescue = true;
    }

    /// Counts VM exits while `work` runs, for the record; and returns how many.
    pub(crate) fn measure(&mut self, work: impl FnOnce(&mut Self)) -> u64 {
        device::stats_begin("nothing");
        let nothing = device::stats_end("nothing");
        device::stats_begin(self.name);
        work(self);
        let exits = device::stats_end(self.name).saturating_sub(nothing);
        self.number("measured_exits", exits);
        exits
    }

    /// What the CPU counted while `work` ran.
    pub(crate) fn counted(&mut self, work: impl FnOnce(&mut Self)) -> Values {
        let before = self.cpu.counters.values();
        work(self);
        self.cpu.counters.values().since(before)
    }

    fn print(&self, counts: &Values) {
        let mut text = Text::<4000>::new();
        let _ = text.write_char('{');
        text.string("kind", if self.failed == 0 { "result" } else { "error" });
        text.string("workload", self.name);
        text.string("delivery", delivery(self.boot));
        text.field("checks", self.checks);
        text.field("failed", self.failed);
        text.field("wrong_bytes", self.wrong_bytes);
        text.string("error", self.why.as_str());
        let _ = write!(text, ",{}", self.body.as_str());
        text.field("ve_apf", "{");
        for (name, value) in
            NAMES.iter().zip(counts.0).filter(|(name, value)| *value != 0 || **name == "rescued")
        {
            text.field(name, value);
        }
        let _ = text.write_str("}}");
        device::report(self.name, text.as_str());
    }
}
