//! The fields of a record: what each means, where it is from, and when it is absent.

use super::answers;
use super::no_faults;
use super::source::{Source, count_of, round};
use crate::cases::Mode;
use crate::lane::Lane;
use serde_json::{Map, Value, json};

/// One field.
pub(super) struct Field {
    /// Its name in bench.json.
    pub(super) name: &'static str,
    /// What it means.
    pub(super) what: &'static str,
    /// How it was taken.
    pub(super) how: &'static str,
    /// Where it repeats.
    pub(super) exact: Exact,
    /// Why it is absent, if it is.
    pub(super) absent: &'static str,
    /// The value.
    pub(super) take: fn(&Source<'_>) -> Option<Value>,
}

/// Where a field repeats from run to run, within 1 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exact {
    /// It depends on what races with what.
    Never,
    /// What the workload does, but for same_page and restore, where it depends on what races with what.
    Work,
    /// Counted in instructions: vmx.
    Counted,
    /// Where time is a count of instructions, one fault at a time on an idle vCPU, where a task can park.
    DepthOne,
}

impl Exact {
    /// In the documentation.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Never => "-",
            Self::Work => "both lanes, but for same_page and restore",
            Self::Counted => "vmx",
            Self::DepthOne => "vmx and -icount, one_at_a_time_alone, where tasks park",
        }
    }

    /// Of this record?
    pub(super) fn holds(self, source: &Source<'_>) -> bool {
        let workload = source.result.text("workload");
        match self {
            Self::Never => false,
            Self::Work => !["same_page", "restore"].contains(&workload),
            Self::Counted => source.lane == Lane::Vmx,
            Self::DepthOne => {
                source.counts_time
                    && source.mode != Mode::Blocking
                    && workload == "one_at_a_time"
                    && source.number("compute") == Some(0.0)
            }
        }
    }
}

const NO_FAULTS: &str = "the workload has no such faults";
const NO_SHARE: &str = "no task computes beside those that fault, or the VM was restored meanwhile";
const NO_PROBE: &str =
    "counted on the lane vmx only, by Bochs's debugger, in one_at_a_time, of tasks that park";
const NO_COMPUTE: &str = "no task computes beside, or what it does alone was not measured";

/// All of them, in the order of the documentation.
pub(super) fn all() -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().chain(no_faults::FIELDS).chain(answers::FIELDS)
}

const FIELDS: &[Field] = &[
    Field {
        name: "faults",
        what: "missing pages met in user mode",
        how: "the workload's first touches; of restore, in either mode: the pager's count of pages of the snapshot",
        exact: Exact::Work,
        absent: NO_FAULTS,
        take: |s| s.count("faults").map(Value::from),
    },
    Field {
        name: "parked",
        what: "of these, those that parked their task",
        how: "with ve-apf the guest kernel's count, else the scheduler's of tasks that slept in their touch",
        exact: Exact::DepthOne,
        absent: NO_FAULTS,
        take: |s| count_of(s, "parked", "faults"),
    },
    Field {
        name: "kernel_faults",
        what: "missing pages met in kernel mode",
        how: "the workload's system calls",
        exact: Exact::Work,
        absent: NO_FAULTS,
        take: |s| s.count("kernel_faults").map(Value::from),
    },
    Field {
        name: "kernel_parked",
        what: "of these, those that parked their task",
        how: "as `parked`",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| count_of(s, "kernel_parked", "kernel_faults"),
    },
    Field {
        name: "exits",
        what: "VM exits that the faults caused",
        how: "KVM's attribution: apf_exits_* and apf_waited of its binary statistics, all vCPUs",
        exact: Exact::DepthOne,
        absent: NO_FAULTS,
        take: |s| (s.faults() > 0.0).then(|| s.count("fault_exits").map(Value::from)).flatten(),
    },
    Field {
        name: "exits_per_fault",
        what: "`exits` over both kinds of faults",
        how: "`exits` / (`faults` + `kernel_faults`)",
        exact: Exact::DepthOne,
        absent: NO_FAULTS,
        take: |s| s.number("exits_per_fault").map(round),
    },
    Field {
        name: "exits_by_reason",
        what: "`exits` divided: fault, doorbell (a hypercall, or the acknowledging MSR), kick, halt (ended by a completion), window, eoi, waited (the vCPU stopped)",
        how: "as `exits`",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| {
            let stats = s.result.value.get("kvm_vcpu")?.as_object()?;
            let name = |name: &str| match name {
                "apf_waited" => Some("waited".to_owned()),
                other => other.strip_prefix("apf_exits_").map(ToOwned::to_owned),
            };
            let all: Map<String, Value> =
                stats.iter().filter_map(|(n, v)| Some((name(n)?, v.clone()))).collect();
            (s.faults() > 0.0).then_some(Value::Object(all))
        },
    },
    Field {
        name: "all_exits",
        what: "all VM exits in the section: timer ticks and the test device's are among them",
        how: "KVM's binary statistics, all vCPUs",
        exact: Exact::Never,
        absent: "KVM reported none",
        take: |s| s.count("exits").map(Value::from),
    },
    Field {
        name: "l1_cpus",
        what: "CPUs of L1: with two, the vCPU has one, and the pager and KVM's threads the other",
        how: "the case table",
        exact: Exact::Never,
        absent: "not so",
        take: |s| Some(json!(s.l1_cpus)),
    },
    Field {
        name: "pv_eoi",
        what: "the guest may end an interrupt without an exit; where not, each completion interrupt has one more (`eoi`)",
        how: "the case table",
        exact: Exact::Never,
        absent: "not so",
        take: |s| Some(json!(s.pv_eoi)),
    },
    Field {
        name: "mips",
        what: "instructions that each of them executes in a microsecond of its time",
        how: "the case table",
        exact: Exact::Never,
        absent: "under QEMU a time is no number of instructions; with -icount it is one of all CPUs together",
        take: |s| s.mips.map(Value::from),
    },
    Field {
        name: "useful_share",
        what: "CPU time of the computing tasks, and of the others' own work, over wall time",
        how: "the guest's scheduler; a task whose fault stops the vCPU is charged for that. Own work: as much as the touching tasks take for the same with all memory there, `own_us`",
        exact: Exact::Never,
        absent: NO_SHARE,
        take: |s| s.of_a_share("useful_share"),
    },
    Field {
        name: "bound",
        what: "the highest `useful_share` there can be: min(N C / (C + L), 1); 1 beside a computing task",
        how: "computed",
        exact: Exact::Never,
        absent: NO_SHARE,
        take: |s| s.of_a_share("bound"),
    },
    Field {
        name: "own_us",
        what: "CPU time that the touching tasks would take if no page were missing",
        how: "what one touch, with its system call and the work before it, takes with the memory there (median of 5), times faults; 0 if that was not measured",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| (s.faults() > 0.0).then(|| s.count("own_us").map(Value::from)).flatten(),
    },
    Field {
        name: "work_share",
        what: "work of the computing task over what it does alone in the same VM",
        how: "its loop's count over wall time; alone for `quiet_ms` before",
        exact: Exact::Never,
        absent: NO_COMPUTE,
        take: |s| s.number("work_share").map(Value::from),
    },
    Field {
        name: "cost_us_per_fault",
        what: "time of the vCPU that a fault costs the computing task, handling included",
        how: "(1 - `work_share`) x wall time / faults",
        exact: Exact::Never,
        absent: NO_COMPUTE,
        take: |s| {
            let (work, wall) = (s.number("work_share")?, s.number("wall_us")?);
            (s.faults() > 0.0).then(|| round((1.0 - work) * wall / s.faults()))
        },
    },
    Field {
        name: "guest_insns_park",
        what: "guest instructions from the exception's first to the first of __schedule(), median",
        how: "Bochs's debugger stops at both and counts; the host's instructions between exits and entries are left out",
        exact: Exact::Counted,
        absent: NO_PROBE,
        take: |s| s.counted("park", "median"),
    },
    Field {
        name: "guest_insns_wake",
        what: "guest instructions from the completion interrupt's first until the task is on a run queue, median",
        how: "as `guest_insns_park`; the end is wakeup_preempt()",
        exact: Exact::Counted,
        absent: NO_PROBE,
        take: |s| s.counted("wake", "median"),
    },
    Field {
        name: "guest_insns_scheduler",
        what: "of `guest_insns_wake`, the scheduler's: from the first instruction of try_to_wake_up() on, median",
        how: "as `guest_insns_wake`",
        exact: Exact::Counted,
        absent: NO_PROBE,
        take: |s| s.counted("scheduler", "median"),
    },
    Field {
        name: "host_insns_per_fault",
        what: "instructions outside the guest from one fault's park to the next one's: KVM, its threads, the VMM's pager",
        how: "as `guest_insns_park`, from VM exits to entries, of the faults with the fewest exits that one in five has, which leaves out those with a timer tick; first quartile, since what else L1 has to do only adds",
        exact: Exact::Counted,
        absent: NO_PROBE,
        take: |s| s.counted("host", "quartile"),
    },
    Field {
        name: "interrupts",
        what: "completion interrupts that the guest took",
        how: "the row HYP of the guest's /proc/interrupts",
        exact: Exact::DepthOne,
        absent: "none came",
        take: |s| s.at("interrupts", "HYP").map(Value::from),
    },
    Field {
        name: "late_p50_us",
        what: "median of a touch's time, less the latency",
        how: "the task's clock before and after its touch",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| s.late("median"),
    },
    Field {
        name: "late_p99_us",
        what: "99th percentile of the same",
        how: "as `late_p50_us`",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| s.late("p99"),
    },
    Field {
        name: "pager_late_us",
        what: "how much later than asked for the pager delivered, mean",
        how: "the pager's clock",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| {
            let deliveries = s.at("pager", "deliveries").filter(|n| *n > 0)?;
            #[expect(clippy::cast_precision_loss, reason = "counts below 2^52")]
            let mean = s.at("pager", "late_us").unwrap_or(0) as f64 / deliveries as f64;
            Some(round(mean))
        },
    },
    Field {
        name: "latency_resolved",
        what: "was the latency kept: is `pager_late_us` at most a fifth of it",
        how: "computed",
        exact: Exact::Never,
        absent: NO_FAULTS,
        take: |s| {
            let late = (FIELDS.iter().find(|f| f.name == "pager_late_us")?.take)(s)?.as_f64()?;
            Some(json!(late * 5.0 <= s.number("latency_us")?))
        },
    },
    Field {
        name: "bystander_p99_us",
        what: "how late a task is that sleeps 1 ms and then works a little, beside tasks that fault, 99th percentile",
        how: "its own clock",
        exact: Exact::Never,
        absent: "the workload has no bystander",
        take: |s| s.at("bystander_us", "p99").map(Value::from),
    },
    Field {
        name: "bystander_quiet_p99_us",
        what: "the same beside tasks that sleep for the latency instead",
        how: "as `bystander_p99_us`, in the same VM before",
        exact: Exact::Never,
        absent: "the workload has no bystander",
        take: |s| s.at("bystander_quiet_us", "p99").map(Value::from),
    },
    Field {
        name: "early",
        what: "faults whose page was there before the task slept",
        how: "the guest kernel's count",
        exact: Exact::Never,
        absent: "not ve-apf",
        take: |s| ours(s, "early"),
    },
    Field {
        name: "suspended",
        what: "faults for which the guest had its vCPU stopped, because it could not sleep there",
        how: "the guest kernel's count",
        exact: Exact::DepthOne,
        absent: "not ve-apf",
        take: |s| ours(s, "suspended"),
    },
    Field {
        name: "spurious_wakes",
        what: "tasks woken whose page was not there",
        how: "the guest kernel's count",
        exact: Exact::DepthOne,
        absent: "not ve-apf",
        take: |s| ours(s, "spurious_wakes"),
    },
    Field {
        name: "rescued",
        what: "faults that the host knew nothing of any more; must be 0",
        how: "the guest kernel's count",
        exact: Exact::Work,
        absent: "not ve-apf",
        take: |s| ours(s, "rescued"),
    },
    Field {
        name: "wall_us",
        what: "length of the section, of an emulated machine: compare within a run only",
        how: "the guest's clock",
        exact: Exact::Never,
        absent: "not reported",
        take: |s| s.count("wall_us").map(Value::from),
    },
];

fn ours(source: &Source<'_>, name: &str) -> Option<Value> {
    let ours = matches!(source.mode, Mode::VeApf | Mode::Hardware | Mode::HardwarePolling);
    ours.then(|| source.at("ve_apf", name).map(Value::from)).flatten()
}

/// Why this field is absent here.
pub(super) fn why_absent(field: &Field, source: &Source<'_>) -> String {
    if field.absent == NO_PROBE && source.lane == Lane::Vmx && source.probe.is_some() {
        return "no fault of this mode parks, so there is nothing to count from".into();
    }
    field.absent.to_owned()
}
