//! What ve-apf costs where it has nothing to do.

use super::{EXACT, OURS, Verdict};
use crate::bench::no_faults::{extra, row};
use crate::bench::row::{Bench, Row};

/// Against kvm-apf, which is a guest with no-ve-apf.
pub(super) fn all(bench: &Bench, out: &mut Vec<Verdict>) {
    let stock = row(bench, EXACT, "kvm-apf");
    for mode in OURS {
        let exits = Verdict::new(format!("no faults: extra exits, {mode}"), "0");
        let instructions = Verdict::new(
            format!("no faults: extra instructions of guest and host, {mode}"),
            "<= 0.01 %",
        );
        let (exits, instructions) = match row(bench, EXACT, mode).zip(stock) {
            Some((ours, stock)) => {
                (judge_exits(exits, ours, stock), judge(instructions, ours, stock))
            }
            None => (exits, instructions),
        };
        out.extend([exits, instructions]);
    }
}

fn judge_exits(verdict: Verdict, ours: &Row, stock: &Row) -> Verdict {
    let Some((n, of, count)) = against(ours, stock, "tick_free_exits", "exits_by_kind") else {
        return verdict;
    };
    verdict.is(format!("{:+}", n - of), n <= of, count)
}

fn judge(verdict: Verdict, ours: &Row, stock: &Row) -> Verdict {
    let Some((n, of, count)) = against(ours, stock, "tsc", "tsc_by_kind") else {
        return verdict;
    };
    let percent = 100.0 * (n - of) / of.max(1.0);
    verdict.is(format!("{percent:+.4} %"), percent <= 0.01, count)
}

/// A sum, what it is without ve-apf, and a text of both and of what each kind of thing adds.
fn against(ours: &Row, stock: &Row, sum: &str, by_kind: &str) -> Option<(f64, f64, String)> {
    let (n, of) = (ours.number(sum)?, stock.number(sum)?);
    let mut count = format!("{n} against {of} with no-ve-apf, without timer ticks");
    let extra = extra(ours, stock, by_kind);
    if !extra.is_empty() {
        count.push_str(": ");
        count.push_str(&extra);
    }
    Some((n, of, count))
}
