//! The two state machines against each other, through every interleaving of small machines.
//!
//! Nothing of the protocol is written again here: tasks, interrupt handlers and vCPU threads are
//! coroutines ([`fiber`]) that run `ve-apf-guest` and `ve-apf-host` as they are and stop before
//! every access to what they share. [`explore`] tries all orders that [`reduce`] does not prove
//! alike. [`world`] is the state, [`machine`] what can happen next; [`guest`] and [`host`] supply the
//! engines' traits, [`task`] and [`exits`] run them. [`ring`] checks each access, [`explore`] the end
//! of every path. [`scenarios`] is the table; `mutants/` holds what it must notice.
//!
//! What is modelled beside the engines follows Linux and KVM: an IPI reaches only a vCPU that
//! announced guest mode; interrupts are taken between any two guest steps with IF set; a woken task
//! may run on another vCPU; a VMM pauses vCPUs between any two guest steps.

pub mod exits;
pub mod explore;
pub mod fiber;
pub mod guest;
pub mod hash;
pub mod host;
pub mod machine;
pub mod reduce;
pub mod ring;
pub mod scenario;
pub mod scenarios;
pub mod task;
pub mod world;
