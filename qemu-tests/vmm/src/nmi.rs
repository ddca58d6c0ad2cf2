//! NMIs on the guest's request: one at once, or a storm from a thread of its own.
//!
//! They are message-signalled (`KVM_SIGNAL_MSI` with NMI as delivery mode), because `KVM_NMI` waits until the vCPU has left
//! `KVM_RUN`, and a storm is to hit it while it runs. Inside of KVM both end in the same function.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use ve_apf_testdev::Nmi;
use vm_memory::{Bytes, GuestAddress};

use crate::counters::lock;
use crate::memory::Ram;
use crate::sys;

/// Sends NMIs.
pub struct NmiSource {
    shared: Arc<Shared>,
    storm: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
    stop: AtomicBool,
    sent: AtomicU64,
}

/// Message address of the local APICs; bits 19:12 name one of them (SDM vol. 3, 11.11).
const ADDRESS: u32 = 0xfee0_0000;
/// Delivery mode NMI (SDM vol. 3, 11.11.2).
const DELIVERY_NMI: u32 = 4 << 8;

impl NmiSource {
    /// For this VM.
    pub fn new(vm: Arc<VmFd>, ram: Arc<Ram>) -> NmiSource {
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        NmiSource { shared: Arc::new(Shared { vm, ram, stop, sent }), storm: Mutex::new(None) }
    }

    /// A storm is on.
    pub fn is_sending(&self) -> bool {
        lock(&self.storm).is_some()
    }

    /// Carries out [`ve_apf_testdev::Op::Nmi`]; returns how many were sent since the last start.
    pub fn command(&self, [what, vcpu, period_us, counter]: [u64; 4]) -> Result<u64, i32> {
        let vcpu = u8::try_from(vcpu).map_err(|_| libc::EINVAL)?;
        let what = Nmi::from_u64(what).ok_or(libc::EINVAL)?;
        if what == Nmi::Once {
            self.shared.send(vcpu)?;
            return Ok(self.shared.sent.load(Ordering::SeqCst));
        }
        let mut storm = lock(&self.storm);
        if let Some(thread) = storm.take() {
            self.shared.stop.store(true, Ordering::SeqCst);
            // It sends NMIs and sleeps: there is nothing in it that panics.
            let _ = thread.join();
        }
        if what != Nmi::Stop {
            self.shared.stop.store(false, Ordering::SeqCst);
            self.shared.sent.store(0, Ordering::SeqCst);
            let shared = self.shared.clone();
            let counter = (what == Nmi::Paced).then_some(GuestAddress(counter));
            let body = move || shared.run(vcpu, period_us, counter);
            let thread = thread::Builder::new().name("nmis".into()).spawn(body);
            *storm = Some(thread.map_err(|_| libc::EAGAIN)?);
        }
        Ok(self.shared.sent.load(Ordering::SeqCst))
    }
}

impl Shared {
    fn send(&self, vcpu: u8) -> Result<(), i32> {
        let msi = kvm_msi {
            address_lo: ADDRESS | u32::from(vcpu) << 12,
            data: DELIVERY_NMI,
            ..kvm_msi::default()
        };
        self.vm.signal_msi(msi).map_err(|error| error.errno())?;
        self.sent.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn run(&self, vcpu: u8, period_us: u64, counter: Option<GuestAddress>) {
        sys::no_timer_slack();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        while !self.stop.load(Ordering::SeqCst) {
            // Half to one and a half of the period, so that it does not keep step with the guest.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            thread::sleep(Duration::from_micros(period_us / 2 + (random >> 33) % period_us.max(1)));
            let sent = self.sent.load(Ordering::SeqCst);
            let seen = counter.map(|at| self.ram.mem.read_obj::<u64>(at));
            let due = seen.is_none_or(|seen| seen.is_ok_and(|seen| seen >= sent));
            if due && self.send(vcpu).is_err() {
                return;
            }
        }
    }
}
