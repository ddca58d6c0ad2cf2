//! What the guest kernel counts: ve-apf's own numbers, and interrupts by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

const DEBUGFS: &str = "/sys/kernel/debug/ve_apf";

/// Names and values.
pub type Values = BTreeMap<String, u64>;

/// One look at all counters.
#[derive(Debug, Default, Clone)]
pub struct GuestCounters {
    /// One-number files of debugfs; `None` without the directory.
    pub ve_apf: Option<Values>,
    /// Rows of /proc/interrupts, summed over CPUs.
    pub interrupts: Values,
}

impl GuestCounters {
    /// Reads them.
    pub fn read() -> GuestCounters {
        let interrupts =
            parse_interrupts(&fs::read_to_string("/proc/interrupts").unwrap_or_default());
        GuestCounters { ve_apf: read_dir(Path::new(DEBUGFS)), interrupts }
    }

    /// Differences since `before`: all of ve-apf's, zero or not, and the interrupts that came.
    pub fn since(&self, before: &GuestCounters) -> Map<String, Value> {
        let mut out = Map::new();
        if let Some(now) = &self.ve_apf {
            let none = Values::new();
            let old = before.ve_apf.as_ref().unwrap_or(&none);
            out.insert("ve_apf".into(), json!(difference(now, old)));
        }
        let mut interrupts = difference(&self.interrupts, &before.interrupts);
        interrupts.retain(|_, count| *count != 0);
        out.insert("interrupts".into(), json!(interrupts));
        out
    }
}

fn difference(now: &Values, before: &Values) -> Values {
    let old = |name| before.get(name).copied().unwrap_or(0);
    now.iter().map(|(name, value)| (name.clone(), value.saturating_sub(old(name)))).collect()
}

/// Every file that holds one number, whatever its name.
fn read_dir(dir: &Path) -> Option<Values> {
    let entries = fs::read_dir(dir).ok()?;
    let values = entries.flatten().filter_map(|entry| {
        let value = fs::read_to_string(entry.path()).ok()?.trim().parse().ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), value))
    });
    Some(values.collect())
}

fn parse_interrupts(text: &str) -> Values {
    let cpus = text.lines().next().map_or(0, |head| head.split_whitespace().count());
    let rows = text.lines().skip(1).filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let sum =
            rest.split_whitespace().take(cpus).map_while(|word| word.parse::<u64>().ok()).sum();
        Some((name.trim().to_owned(), sum))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts() {
        let text = "           CPU0       CPU1\n  4:         10          5   IO-APIC   4-edge      ttyS0\n\
                    HYP:          7          0   Hypervisor callback interrupts\nERR:          2\n";
        let values = parse_interrupts(text);
        assert_eq!((values["4"], values["HYP"], values["ERR"]), (15, 7, 2));
    }

    #[test]
    fn differences() {
        let look = |parked, hyp| GuestCounters {
            ve_apf: Some(Values::from([("parked".into(), parked), ("rescued".into(), 0)])),
            interrupts: Values::from([("HYP".into(), hyp), ("4".into(), 1)]),
        };
        let diff = look(9, 5).since(&look(2, 4));
        assert_eq!(diff["ve_apf"], json!({"parked": 7, "rescued": 0}));
        assert_eq!(diff["interrupts"], json!({"HYP": 1}));
        assert!(GuestCounters::default().since(&GuestCounters::default()).get("ve_apf").is_none());
    }
}
