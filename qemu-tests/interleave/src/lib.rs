//! The two state machines against each other, through every interleaving of small machines.
//!
//! Nothing of the protocol is written again here: tasks, interrupt handlers and vCPU threads are
//! coroutines ([`fiber`]) that run `ve-apf-guest` and `ve-apf-host` as they are and stop before
//! every access to what they share. [`explore`] tries all orders that [`reduce`] does not prove
//! alike. [`world`] and [`vcpu`] are the state, [`choices`] is what can happen next, [`machine`] makes it
//! happen; [`guest`] and [`host`] supply the engines' traits, [`task`], [`nmi`] and [`exits`] run them.
//! [`ring`] and [`info`] check each access, [`explore`] the end of every path. [`scenarios`] is the
//! table; `mutants/` holds what it must notice.
//!
//! What is modelled beside the engines follows Linux and KVM: an IPI reaches only a vCPU that
//! announced guest mode; interrupts are taken between any two guest steps with IF set; a woken task
//! may run on another vCPU; a VMM pauses vCPUs between any two guest steps. The CPU raises #VE by itself
//! where a missing page is declared and the busy word is 0, in any context; else it exits. An NMI
//! comes between any two guest steps, and ends the halt of a suspended vCPU. A poller looks at a ring
//! between any two steps of all others, and its time ends at any.

pub mod choices;
pub mod cpu;
pub mod exits;
pub mod explore;
mod faults;
pub mod fiber;
pub mod guest;
pub mod hash;
pub mod host;
pub mod info;
pub mod machine;
pub mod nmi;
pub mod poll;
pub mod reduce;
pub mod ring;
pub mod scenario;
pub mod scenarios;
pub mod task;
pub mod vcpu;
pub mod world;
