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
    /// The same, under a host that polls: its boot says so.
    HardwarePolling,
}

impl Mode {
    /// As in the case table and in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::KvmApf => "kvm-apf",
            Self::VeApf => "ve-apf",
            Self::Hardware => "hardware",
            Self::HardwarePolling => "hardware-polling",
        }
    }

    /// Can a guest on this machine meet missing pages like that?
    pub(super) fn is_on(self, lane: Lane) -> bool {
        !matches!(self, Self::Hardware | Self::HardwarePolling) || lane == Lane::Vmx
    }

    /// Kernel parameters of L2 that make it so.
    pub(super) fn cmdline(self) -> &'static str {
        match self {
            Self::Blocking => "no-ve-apf no-kvmapf",
            Self::KvmApf => "no-ve-apf",
            Self::VeApf => "ve-apf=injected",
            Self::Hardware | Self::HardwarePolling => "ve-apf=hardware",
        }
    }
}
