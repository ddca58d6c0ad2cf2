//! The ways in which L2 meets missing pages.

use crate::lane::Lane;
use serde::Deserialize;

/// How the guest meets a missing page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// The vCPU stops.
    Blocking,
    /// KVM's asynchronous page fault.
    KvmApf,
    /// Ours, injected by KVM.
    VeApf,
    /// Ours, raised by the CPU.
    Hardware,
}

impl Mode {
    /// As in the case table and in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::KvmApf => "kvm-apf",
            Self::VeApf => "ve-apf",
            Self::Hardware => "hardware",
        }
    }

    /// Can a guest on this machine meet missing pages like that?
    pub(super) fn is_on(self, lane: Lane) -> bool {
        self != Self::Hardware || lane == Lane::Vmx
    }

    /// Kernel parameters of L2 that make it so.
    pub(super) fn cmdline(self) -> &'static str {
        match self {
            Self::Blocking => "no-ve-apf no-kvmapf",
            Self::KvmApf => "no-ve-apf",
            Self::VeApf => "ve-apf=injected",
            Self::Hardware => "ve-apf=hardware",
        }
    }
}
