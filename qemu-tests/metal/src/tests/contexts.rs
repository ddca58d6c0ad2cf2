//! Missing pages in every context there is: the task sleeps where it may, elsewhere the vCPU stops, for the right reason.
//!
//! Options: `latency` (us), where the vCPU stops: long enough that it has stopped before the page is there.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use ve_apf_metal::cpu::{Cpu, Mode};
use ve_apf_metal::{lapic, trap};
use ve_apf_testdev::PolicyArgs;
use x86_64::instructions::interrupts;

use crate::suite::{Check, Test};
use crate::{arena, device, probe};

/// Each context in turn.
pub(crate) const CONTEXTS: Test = Test::any("contexts", "contexts", contexts);

/// A context, and why the guest suspends the vCPU in it.
struct Context {
    name: &'static str,
    /// Reads the page as [`read`] does.
    enter: fn(&'static Cpu),
    /// What is counted; nothing where interrupts are off and the host injects: it waits by itself then.
    injected: Option<&'static str>,
    hardware: &'static str,
}

const ALL: [Context; 8] = [
    Context { name: "task", enter: task, injected: Some("parked"), hardware: "parked" },
    Context {
        name: "interrupts_off",
        enter: |_| interrupts::without_interrupts(read),
        injected: None,
        hardware: "suspended_irqs_off",
    },
    Context {
        name: "preemption_off",
        enter: |cpu| atomic(cpu, read),
        injected: Some("suspended_atomic"),
        hardware: "suspended_atomic",
    },
    Context {
        name: "interrupt",
        enter: |_| {
            interrupt(|cpu, _| {
                read();
                lapic::end_of_interrupt(cpu);
            })
        },
        injected: None,
        hardware: "suspended_irqs_off",
    },
    Context {
        name: "interrupt_after_eoi",
        enter: |_| {
            interrupt(|cpu, _| {
                lapic::end_of_interrupt(cpu);
                read();
            })
        },
        injected: None,
        hardware: "suspended_irqs_off",
    },
    Context {
        name: "softirq",
        enter: |_| {
            interrupt(|cpu, _| {
                lapic::end_of_interrupt(cpu);
                atomic(cpu, || {
                    interrupts::enable();
                    read();
                    interrupts::disable();
                });
            })
        },
        injected: Some("suspended_atomic"),
        hardware: "suspended_atomic",
    },
    Context {
        name: "idle",
        enter: |cpu| cpu.sched.run_in_idle(read),
        injected: Some("suspended_idle"),
        hardware: "suspended_idle",
    },
    Context {
        name: "nmi",
        enter: |cpu| {
            trap::set_handler(trap::NMI, |_, _| read());
            lapic::send(lapic::nmi_command(cpu.index()));
        },
        injected: None,
        hardware: "suspended_nmi",
    },
];

const PAGE: usize = 40;
const ROUND: u64 = 400;

static COMMAND: AtomicU64 = AtomicU64::new(0);
/// What was read, and how often.
static VALUE: AtomicU64 = AtomicU64::new(0);
static READS: AtomicU64 = AtomicU64::new(0);

/// Takes the page away and reads it.
fn read() {
    // SAFETY: the arena is mapped; the command was prepared before any context was entered.
    let value = unsafe { probe::load(COMMAND.load(SeqCst), arena::address(PAGE)) };
    VALUE.store(value, SeqCst);
    READS.fetch_add(1, SeqCst);
}

/// Where the page comes as soon as the task sleeps, and no sooner.
fn task(cpu: &'static Cpu) {
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    cpu.sched.spawn(|_| _ = device::restore_all(), 0);
    read();
    cpu.sched.join();
}

fn atomic(cpu: &Cpu, work: impl FnOnce()) {
    cpu.preempt_off.fetch_add(1, SeqCst);
    work();
    cpu.preempt_off.fetch_sub(1, SeqCst);
}

fn interrupt(handler: trap::Handler) {
    trap::set_handler(trap::KERNEL, handler);
    lapic::send(lapic::interrupt_command(ve_apf_metal::cpu::this().index(), trap::KERNEL));
}

fn contexts(check: &mut Check<'_>) {
    let stopped = PolicyArgs::fixed(check.boot.options.number("latency", 50_000));
    let command =
        device::prepare_evict(2, [arena::frames(PAGE..PAGE + 1)], device::Content::Pattern(ROUND));
    COMMAND.store(command, SeqCst);
    for context in &ALL {
        READS.store(0, SeqCst);
        VALUE.store(0, SeqCst);
        device::set_policy([], stopped);
        let counts = check.counted(|check| (context.enter)(check.cpu));
        let name = context.name;
        check.equal(format_args!("reads in {name}"), READS.load(SeqCst), 1);
        check.right(8 * u64::from(VALUE.load(SeqCst) != arena::expected(PAGE, ROUND, 0)));
        let hardware = check.boot.mode == Mode::Hardware;
        let wanted = if hardware { Some(context.hardware) } else { context.injected };
        check.equal(
            format_args!("faults in {name}"),
            counts.get("faults"),
            wanted.is_some().into(),
        );
        if let Some(wanted) = wanted {
            check.equal(format_args!("{wanted} in {name}"), counts.get(wanted), 1);
        }
    }
    check.number("contexts", ALL.len() as u64);
    trap::set_handler(trap::NMI, super::nmi::on_nmi);
    check.that("an NMI comes afterwards", super::nmi::one_comes(check.cpu));
}
