//! The text of a trace, as tracefs prints it.

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event<'a> {
    /// In ns, of the clock the trace was made with.
    pub(crate) ns: u64,
    /// The CPU it happened on.
    pub(crate) cpu: u32,
    /// The event's name.
    pub(crate) name: &'a str,
    /// The rest of the line.
    args: &'a str,
}

impl<'a> Event<'a> {
    /// `touch0-71  [000] d..2.  12.345678: sched_switch: prev_comm=... `; None for anything else.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        // The task's name may hold anything, so the bracket is looked for that holds digits only.
        let (cpu, rest) = line.match_indices('[').find_map(|(at, _)| {
            let (inside, rest) = line[at + 1..].split_once(']')?;
            Some((inside.parse().ok()?, rest))
        })?;
        let (head, rest) = rest.split_once(": ")?;
        let (name, args) = rest.split_once(':')?;
        let ns = nanoseconds(head.split_whitespace().next_back()?)?;
        Some(Self { ns, cpu, name: name.trim(), args: args.trim() })
    }

    /// The text after `name=`, up to the next field.
    pub(crate) fn field(&self, name: &str) -> Option<&'a str> {
        let at = self.args.match_indices(name).find(|(at, _)| {
            let before_ok = *at == 0 || self.args.as_bytes()[at - 1] == b' ';
            before_ok && self.args[at + name.len()..].starts_with('=')
        })?;
        let value = &self.args[at.0 + name.len() + 1..];
        // A value ends where the next "key=" or the arrow of sched_switch begins.
        let end = value
            .match_indices(' ')
            .map(|(i, _)| i)
            .find(|&i| {
                let next = &value[i + 1..];
                next.starts_with("==>")
                    || next
                        .split([' ', '='])
                        .next()
                        .is_some_and(|k| next[k.len()..].starts_with('='))
            })
            .unwrap_or(value.len());
        Some(value[..end].trim())
    }

    /// A field that is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.field(name)?.parse().ok()
    }
}

/// "12.345678" in ns.
fn nanoseconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let scale = 10_u64.pow(9 - u32::try_from(fraction.len()).ok()?);
    Some(seconds.parse::<u64>().ok()? * 1_000_000_000 + fraction.parse::<u64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = "touch [1]-71      [002] d..2.    12.345678: sched_switch: prev_comm=touch [1] prev_pid=71 \
                          prev_prio=120 prev_state=D ==> next_comm=my task next_pid=72 next_prio=120";

    #[test]
    fn a_switch() {
        let line = SWITCH.replace(" [1]", "1");
        let event = Event::parse(&line).unwrap();
        assert_eq!((event.ns, event.cpu, event.name), (12_345_678_000, 2, "sched_switch"));
        assert_eq!(event.field("prev_comm"), Some("touch1"));
        assert_eq!(event.field("prev_state"), Some("D"));
        assert_eq!(event.field("next_comm"), Some("my task"));
        assert_eq!(event.number("next_pid"), Some(72));
        assert_eq!(event.number("pid"), None);
    }

    #[test]
    fn a_wakeup() {
        let line = "<idle>-0       [000] dNh4.    1.5: sched_waking: comm=touch0 pid=70 prio=120 target_cpu=000";
        let event = Event::parse(line).unwrap();
        assert_eq!(
            (event.ns, event.number("pid"), event.number("target_cpu")),
            (1_500_000_000, Some(70), Some(0))
        );
    }

    #[test]
    fn other_lines_are_none() {
        for line in ["", "# tracer: nop", "CPU:0 [LOST 12 EVENTS]", "x [000] y"] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }
}
