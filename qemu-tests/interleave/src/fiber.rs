//! Threads that the explorer stops and resumes: coroutines on stacks that are used again.

use crate::world::World;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};
use std::hash::Hash;

/// What a fiber stops with.
pub type Pause = Yielder<(), ()>;

/// One thread of execution, stopped before its next access to something shared.
pub struct Fiber(Coroutine<(), (), (), DefaultStack>);

/// Stacks not in use; making one is a system call.
#[derive(Default)]
pub struct Stacks(Vec<DefaultStack>);

impl Stacks {
    /// A fiber that will run `body`.
    pub fn spawn<F: FnOnce(&Pause) + 'static>(&mut self, body: F) -> Fiber {
        let stack = self.0.pop().unwrap_or_else(|| DefaultStack::new(128 << 10).expect("a stack"));
        Fiber(Coroutine::with_stack(stack, move |pause, ()| body(pause)))
    }

    /// Takes back the stack of a fiber, which may be in the middle of something.
    pub fn drop(&mut self, mut fiber: Fiber) {
        if !fiber.0.done() {
            // SAFETY: this abandons the frames on the fiber's stack without running destructors.
            // (1) Every fiber's body is task.rs or exits.rs over the two engines; across a pause
            // they hold `&'static World`, references into their own stack, and plain values
            // (`Works` and `VcpuState` have no Drop and own no heap), never a `RefCell` guard.
            // (2) Nothing outside the stack points into it: the world stores values only.
            unsafe { fiber.0.force_reset() };
        }
        self.0.push(fiber.0.into_stack());
    }
}

impl Fiber {
    /// Runs to the next pause; returns whether the body is over.
    pub fn resume(&mut self) -> bool {
        self.0.resume(()).as_return().is_some()
    }
}

/// What a fiber accesses next; see `reduce.rs` for what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Anything.
    Shared,
    /// The ring of the vCPU it runs on.
    OwnRing,
    /// The lock of that ring, the running task's own scheduler state, or that of one that waits
    /// on that ring.
    OwnTask,
    /// Its request and whether it announced guest mode.
    OwnEntry,
}

/// A fiber, seen from inside.
#[derive(Clone, Copy)]
pub struct Thread<'a> {
    /// The machine.
    pub world: &'static World,
    /// Which of its fibers this is.
    pub id: usize,
    /// How it stops.
    pub pause: &'a Pause,
}

impl Thread<'_> {
    /// Before an access to something shared: everybody else may run now.
    pub fn step(&self) {
        self.step_to(Next::Shared);
    }

    /// The same, saying what is accessed next.
    pub fn step_to(&self, next: Next) {
        if self.world.merge.take() {
            return;
        }
        self.world.next.borrow_mut()[self.id] = next;
        // Tells this pause from the one before.
        self.learn(());
        self.pause.suspend(());
    }

    /// What the thread now knows. Its local state is a function of where it began and of this.
    pub fn learn<T: Hash>(&self, value: T) -> T {
        self.world.with(|state| {
            let history = &mut state.history[self.id];
            *history = crate::hash::of(&(*history, &value));
        });
        value
    }

    /// It is at a point that `place` describes in full, so that its past makes no difference.
    pub fn forget<T: Hash>(&self, place: T) {
        self.world.with(|state| state.history[self.id] = crate::hash::of(&place));
    }

    /// One line of the trace.
    pub fn note(&self, text: impl FnOnce() -> String) {
        self.world.note(text);
    }
}
