//! A cooperative scheduler for one CPU. A task leaves the CPU where it sleeps or says so, and nowhere else; a task that
//! faulted sleeps inside its exception.

use crate::tables::Page;
use core::arch::global_asm;
use core::num::NonZeroUsize;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst,
};
use ve_apf_guest::waiters::TaskId;
use x86_64::instructions::interrupts;

/// Tasks of a CPU: its first one, its idle one, and room for more than a ring has slots.
pub const TASKS: usize = 72;
/// Bytes of a stack.
pub const STACK: usize = 2 * 4096;

const FIRST: usize = 0;
const IDLE: usize = 1;

const FREE: u8 = 0;
const READY: u8 = 1;
const ASLEEP: u8 = 2;

/// What a task runs.
pub type Body = fn(usize);

/// One task.
pub struct Task {
    rsp: AtomicU64,
    state: AtomicU8,
    /// Inside the #VE handler.
    pub(crate) in_ve: AtomicBool,
    body: AtomicUsize,
    argument: AtomicUsize,
}

/// The tasks of one CPU.
pub struct Scheduler {
    tasks: [Task; TASKS],
    current: AtomicUsize,
    /// The first task waits for the others.
    joining: AtomicBool,
    /// Called once by the idle task.
    idle_hook: AtomicUsize,
}

/// The stacks of all tasks of one CPU. The first task brings its own.
pub type Stacks = [Page<[u8; STACK]>; TASKS];

static STACKS: [Stacks; crate::cpu::CPUS] =
    [const { [const { Page::new([0; STACK]) }; TASKS] }; crate::cpu::CPUS];

// `ve_metal_switch(save, load)`: saves what a function must keep, writes the stack pointer to `save`, takes up the
// task whose stack pointer is `load`. A new task begins in `ve_metal_task`.
global_asm!(
    ".pushsection .text.ve_metal_sched, \"ax\", @progbits",
    ".global ve_metal_switch, ve_metal_task",
    "ve_metal_switch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov rsp, rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "ve_metal_task:",
    "call ve_metal_task_body",
    "ud2",
    ".popsection",
);

unsafe extern "C" {
    fn ve_metal_switch(save: *mut u64, load: u64);
    fn ve_metal_task();
}

impl Task {
    const fn new() -> Self {
        Self {
            rsp: AtomicU64::new(0),
            state: AtomicU8::new(FREE),
            in_ve: AtomicBool::new(false),
            body: AtomicUsize::new(0),
            argument: AtomicUsize::new(0),
        }
    }
}

impl Scheduler {
    pub(crate) const fn new() -> Self {
        Self {
            tasks: [const { Task::new() }; TASKS],
            current: AtomicUsize::new(FIRST),
            joining: AtomicBool::new(false),
            idle_hook: AtomicUsize::new(0),
        }
    }

    /// The running code is the first task from now on.
    pub(crate) fn init(&self) {
        self.task(FIRST).state.store(READY, SeqCst);
        self.start(IDLE, idle, 0);
    }

    fn task(&self, index: usize) -> &Task {
        // Every index comes from this file, and is below TASKS.
        self.tasks.get(index).unwrap_or(&self.tasks[FIRST])
    }

    pub(crate) fn current(&self) -> &Task {
        self.task(self.current.load(Relaxed))
    }

    pub(crate) fn current_id(&self) -> TaskId {
        TaskId(NonZeroUsize::MIN.saturating_add(self.current.load(Relaxed)))
    }

    /// Whether the idle task runs.
    pub fn is_idle(&self) -> bool {
        self.current.load(Relaxed) == IDLE
    }

    /// Where the running task's stack begins, if the scheduler made it.
    pub fn stack_of(&self, cpu: usize, task: usize) -> Option<u64> {
        STACKS.get(cpu)?.get(task).map(Page::address)
    }

    /// Starts a task; `None` if there are too many.
    pub fn spawn(&self, body: Body, argument: usize) -> Option<usize> {
        let free = |index: &usize| self.task(*index).state.load(Relaxed) == FREE;
        let index = (IDLE + 1..TASKS).find(free)?;
        self.start(index, body, argument);
        Some(index)
    }

    fn start(&self, index: usize, body: Body, argument: usize) {
        let task = self.task(index);
        let Some(stack) = STACKS.get(crate::cpu::this().index()).and_then(|all| all.get(index))
        else {
            return;
        };
        // Six registers and the return address of `ve_metal_switch`; then as if `ve_metal_task` had been called.
        let top = stack.address() + STACK as u64 - 16;
        let rsp = top - 7 * 8;
        // SAFETY: inside the stack of a task that does not run, 8-byte aligned.
        unsafe {
            core::ptr::with_exposed_provenance_mut::<[u64; 7]>(rsp as usize).write([
                0,
                0,
                0,
                0,
                0,
                0,
                ve_metal_task as *const () as u64,
            ]);
        }
        stack.get().expose_provenance();
        task.body.store(body as usize, Relaxed);
        task.argument.store(argument, Relaxed);
        task.in_ve.store(false, Relaxed);
        task.rsp.store(rsp, Relaxed);
        task.state.store(READY, SeqCst);
    }

    /// A wake from here on is not lost.
    pub(crate) fn prepare_to_sleep(&self) {
        self.current().state.store(ASLEEP, SeqCst);
    }

    pub(crate) fn finish_sleep(&self) {
        self.current().state.store(READY, SeqCst);
    }

    pub(crate) fn wake(&self, id: TaskId) {
        let task = self.task(id.0.get() - 1);
        // A task that is not asleep has seen what it would be woken for.
        let _ = task.state.compare_exchange(ASLEEP, READY, SeqCst, SeqCst);
    }

    fn next(&self) -> Option<usize> {
        let current = self.current.load(Relaxed);
        (1..=TASKS)
            .map(|step| (current + step) % TASKS)
            .find(|index| *index != IDLE && self.task(*index).state.load(SeqCst) == READY)
    }

    /// Gives up the CPU until the running task is ready. Interrupts are off.
    pub(crate) fn schedule(&self) {
        self.switch_to(self.next().unwrap_or(IDLE));
    }

    fn switch_to(&self, next: usize) {
        let previous = self.current.swap(next, Relaxed);
        if previous != next {
            let (save, load) =
                (self.task(previous).rsp.as_ptr(), self.task(next).rsp.load(Relaxed));
            // SAFETY: interrupts are off; `load` was saved by this function or made by `start`, for a task that
            // does not run.
            unsafe { ve_metal_switch(save, load) };
        }
    }

    /// Where one task becomes another: a handler that comes here has parked its task.
    pub fn switch_address() -> u64 {
        ve_metal_switch as *const () as u64
    }

    /// Lets every other task run that is ready.
    pub fn yield_now(&self) {
        interrupts::without_interrupts(|| self.schedule());
    }

    /// Sleeps until every task that was spawned has ended. For the first task only.
    pub fn join(&self) {
        interrupts::without_interrupts(|| {
            self.joining.store(true, SeqCst);
            while self.live() > 0 {
                self.prepare_to_sleep();
                self.schedule();
            }
            self.joining.store(false, SeqCst);
            self.finish_sleep();
        });
    }

    /// Tasks that were spawned and have not ended.
    pub fn live(&self) -> usize {
        let used = |task: &&Task| task.state.load(SeqCst) != FREE;
        self.tasks.iter().skip(IDLE + 1).filter(used).count()
    }

    /// Of these, those that sleep.
    pub fn asleep(&self) -> usize {
        self.tasks.iter().skip(IDLE + 1).filter(|task| task.state.load(SeqCst) == ASLEEP).count()
    }

    /// Has the idle task call `hook`, once, and runs nothing else until it did. For the first task only.
    pub fn run_in_idle(&self, hook: fn()) {
        interrupts::without_interrupts(|| {
            self.idle_hook.store(hook as usize, SeqCst);
            self.joining.store(true, SeqCst);
            self.prepare_to_sleep();
            self.switch_to(IDLE);
            self.joining.store(false, SeqCst);
        });
    }

    /// The first task looks again, if it waits for other tasks; for a page it waits undisturbed.
    fn wake_first(&self) {
        if self.joining.load(SeqCst) {
            self.task(FIRST).state.store(READY, SeqCst);
        }
    }
}

/// The body of every task, on its own stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn ve_metal_task_body() -> ! {
    let sched = &crate::cpu::this().sched;
    let task = sched.current();
    let body = task.body.load(Relaxed);
    // SAFETY: `start` stored it; no function is at 0.
    if let Some(body) = unsafe { core::mem::transmute::<usize, Option<Body>>(body) } {
        interrupts::enable();
        body(task.argument.load(Relaxed));
        interrupts::disable();
    }
    task.state.store(FREE, SeqCst);
    sched.wake_first();
    loop {
        sched.schedule();
    }
}

/// Runs while nobody else does; starts with interrupts on.
fn idle(_: usize) {
    let sched = &crate::cpu::this().sched;
    loop {
        interrupts::disable();
        let hook = sched.idle_hook.swap(0, SeqCst);
        // SAFETY: `run_in_idle` stored it; no function is at 0.
        if let Some(hook) = unsafe { core::mem::transmute::<usize, Option<fn()>>(hook) } {
            interrupts::enable();
            hook();
            interrupts::disable();
            sched.wake_first();
        }
        match sched.next() {
            Some(next) => sched.switch_to(next),
            // No wake between the look and the halt.
            None => crate::sys::enable_and_halt(),
        }
    }
}
