//! The fields of what a server answers while its VM is restored, and of rates.

use super::fields::{Exact, Field};
use super::source::round;
use serde_json::Value;

const NO_SERVER: &str = "restore only: no server runs";
const NO_RATE: &str = "rate only";

/// Them.
pub(super) const FIELDS: &[Field] = &[
    Field {
        name: "first_answer_us",
        what: "from the moment when the restored VM's vCPUs run, with no page of memory, to the server's first right answer",
        how: "the VMM's clock",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.count("first_us").map(Value::from),
    },
    Field {
        name: "first_answer_pages",
        what: "pages that had come by then, each because somebody touched it",
        how: "the pager's count",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.count("first_pages").map(Value::from),
    },
    Field {
        name: "answers",
        what: "answers of the server while it was restored, every byte of them compared",
        how: "the clients' count",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.count("answers").map(Value::from),
    },
    Field {
        name: "all_answers_us",
        what: "as `first_answer_us`, to the last answer",
        how: "the VMM's clock",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.count("all_us").map(Value::from),
    },
    Field {
        name: "answer_p50_us",
        what: "time from a request to its answer while the server was restored, median",
        how: "the clients' clock, which are tasks of the same guest and are restored themselves",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.at("answer_us", "median").map(Value::from),
    },
    Field {
        name: "answer_p99_us",
        what: "99th percentile of the same",
        how: "as `answer_p50_us`",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.at("answer_us", "p99").map(Value::from),
    },
    Field {
        name: "answer_quiet_p99_us",
        what: "the same for these requests before the snapshot, with all memory there",
        how: "as `answer_p50_us`",
        exact: Exact::Never,
        absent: NO_SERVER,
        take: |s| s.at("answer_quiet_us", "p99").map(Value::from),
    },
    Field {
        name: "us_per_fault",
        what: "time of a touch, with the work before it, while tasks keep all busy vCPUs busy",
        how: "the guest's wall time over touches; with -icount that of all CPUs one after the other: so many instructions, of guest and host",
        exact: Exact::Never,
        absent: NO_RATE,
        take: |s| {
            s.count("busy_vcpus")?;
            Some(round(s.number("wall_us")? / s.faults().max(1.0)))
        },
    },
    Field {
        name: "work_us",
        what: "what a task works before each touch",
        how: "the guest's clock, with nothing else running",
        exact: Exact::Never,
        absent: NO_RATE,
        take: |s| s.count("work_us").map(Value::from),
    },
];
