//! Expectations: one comparison over the fields of a case's records.
//!
//! `result.parked / result.faults >= 0.99`, `step.exit == 0`, `len(result.dmesg_bad) == 0`,
//! `info.mode == "ve-apf"`, `count(internal_error) == 0`.
//!
//! A path's first word names the kind of a record or the workload of a result (the case's last one of that name);
//! without one, the last `result` is meant. A missing field is a failure, never a zero. `or_zero(path)` is for counters
//! that are not reported while they are zero. `a ~ "text"` holds if the text occurs in `a`, lists included.
//!
//! `in time: fault_us.max < 2000000` is one that depends on how fast this machine is.

use crate::record::Record;
use serde_json::Value;

mod parser;

/// What stands before an expectation that depends on how fast this machine is.
const IN_TIME: &str = "in time: ";

use parser::{Expr, Op};

/// A parsed expectation.
#[derive(Debug)]
pub(crate) struct Expectation {
    /// As written.
    pub(crate) text: String,
    /// A busy machine may be why it does not hold.
    pub(crate) in_time: bool,
    left: Expr,
    op: Op,
    right: Expr,
}

/// A value while evaluating.
#[derive(Clone, Debug, PartialEq)]
enum Term {
    Number(f64),
    Text(String),
    Bool(bool),
    Null,
    Other(String),
}

impl Term {
    fn show(&self) -> String {
        match self {
            Self::Number(n) => format!("{}", (n * 1e4).round() / 1e4),
            Self::Text(s) => format!("{s:?}"),
            Self::Bool(b) => b.to_string(),
            Self::Null => "null".into(),
            Self::Other(s) => s.clone(),
        }
    }
}

impl Expectation {
    /// Parses; an error says where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let comparison = text.strip_prefix(IN_TIME);
        let (left, op, right) = parser::comparison(comparison.unwrap_or(text))?;
        Ok(Self { text: text.to_owned(), in_time: comparison.is_some(), left, op, right })
    }

    /// None, or what was found in place of what should hold; an error if there is nothing to compare.
    fn compare(&self, records: &[Record]) -> Result<Option<String>, String> {
        let failed = |why: String| format!("{}: {why}", self.text);
        let left = eval(&self.left, records).map_err(failed)?;
        let right = eval(&self.right, records).map_err(failed)?;
        let holds = match self.op {
            Op::Eq => left == right,
            Op::Ne => left != right,
            Op::Contains => match (&left, &right) {
                (Term::Text(a) | Term::Other(a), Term::Text(b)) => a.contains(b.as_str()),
                _ => {
                    return Err(failed(format!(
                        "'~' does not work on {} and {}",
                        left.show(),
                        right.show()
                    )));
                }
            },
            Op::Lt | Op::Le | Op::Gt | Op::Ge => {
                let (Term::Number(a), Term::Number(b)) = (&left, &right) else {
                    return Err(failed(format!(
                        "{} and {} have no order",
                        left.show(),
                        right.show()
                    )));
                };
                match self.op {
                    Op::Lt => a < b,
                    Op::Le => a <= b,
                    Op::Gt => a > b,
                    _ => a >= b,
                }
            }
        };
        if holds {
            return Ok(None);
        }
        // The right side is mostly a constant that the text shows already.
        let right = if matches!(self.right, Expr::Number(_) | Expr::Text(_)) {
            String::new()
        } else {
            format!(", right side {}", right.show())
        };
        Ok(Some(failed(format!("is {}{right}", left.show()))))
    }
}

/// Why some do not hold: those that this machine's speed has no part in, and those that are to hold in time. What cannot be
/// compared, because a record or a field is not there, is of the first.
pub(crate) fn unmet(all: &[Expectation], records: &[Record]) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut slow) = (Vec::new(), Vec::new());
    for expectation in all {
        match expectation.compare(records) {
            Ok(None) => {}
            Ok(Some(why)) if expectation.in_time => slow.push(why),
            Ok(Some(why)) | Err(why) => wrong.push(why),
        }
    }
    (wrong, slow)
}

/// The value of an expression, as it is shown to people.
pub(crate) fn value(text: &str, records: &[Record]) -> Result<String, String> {
    Ok(match eval(&parser::expression(text)?, records)? {
        Term::Text(text) => text,
        other => other.show(),
    })
}

fn eval(expr: &Expr, records: &[Record]) -> Result<Term, String> {
    match expr {
        Expr::Number(n) => Ok(Term::Number(*n)),
        Expr::Text(s) => Ok(Term::Text(s.clone())),
        Expr::Bool(b) => Ok(Term::Bool(*b)),
        Expr::Null => Ok(Term::Null),
        Expr::Path(path) => {
            lookup(path, records).map(term).ok_or_else(|| format!("no field {}", path.join(".")))
        }
        Expr::Call(name, path) => call(name, path, records),
        Expr::Binary(op, a, b) => {
            let (Term::Number(a), Term::Number(b)) = (eval(a, records)?, eval(b, records)?) else {
                return Err(format!("'{op}' needs numbers"));
            };
            match op {
                '+' => Ok(Term::Number(a + b)),
                '-' => Ok(Term::Number(a - b)),
                '*' => Ok(Term::Number(a * b)),
                _ if b == 0.0 => Err("division by zero".into()),
                _ => Ok(Term::Number(a / b)),
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
fn call(name: &str, path: &[String], records: &[Record]) -> Result<Term, String> {
    match name {
        "count" => {
            let kind = path.join(".");
            Ok(Term::Number(records.iter().filter(|r| r.kind() == kind).count() as f64))
        }
        "len" => match lookup(path, records) {
            Some(Value::Array(a)) => Ok(Term::Number(a.len() as f64)),
            Some(Value::Object(o)) => Ok(Term::Number(o.len() as f64)),
            Some(Value::String(s)) => Ok(Term::Number(s.chars().count() as f64)),
            Some(_) => Err(format!("{} has no length", path.join("."))),
            None => Err(format!("no field {}", path.join("."))),
        },
        "or_zero" => Ok(lookup(path, records).map_or(Term::Number(0.0), term)),
        "has" => Ok(Term::Bool(lookup(path, records).is_some())),
        _ => Err(format!("no function {name}")),
    }
}

fn lookup<'a>(path: &[String], records: &'a [Record]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let of_kind = |name: &str| {
        records
            .iter()
            .rev()
            .find(|r| r.kind() == name || (r.kind() == "result" && r.text("workload") == name))
    };
    let (record, path) = match of_kind(first) {
        Some(record) if !rest.is_empty() => (record, rest),
        _ => (of_kind("result")?, path),
    };
    path.iter().try_fold(&record.value, |value, key| match value {
        Value::Array(a) => a.get(key.parse::<usize>().ok()?),
        other => other.get(key),
    })
}

fn term(value: &Value) -> Term {
    match value {
        Value::Number(n) => n.as_f64().map_or(Term::Null, Term::Number),
        Value::String(s) => Term::Text(s.clone()),
        Value::Bool(b) => Term::Bool(*b),
        Value::Null => Term::Null,
        other => Term::Other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn records() -> Vec<Record> {
        [
            json!({"kind": "result", "workload": "touch", "wrong_bytes": 7}),
            json!({"kind": "result", "faults": 200, "parked": 199, "wrong_bytes": 0, "ok": true,
                   "ve_apf": {"rescued": 0}, "bad": ["x"], "mode": "ve-apf", "none": null}),
            json!({"kind": "step", "exit": 0}),
        ]
        .into_iter()
        .map(|value| Record { value })
        .collect()
    }

    fn check(text: &str) -> Result<(), String> {
        Expectation::parse(text).unwrap().compare(&records())?.map_or(Ok(()), Err)
    }

    #[test]
    fn what_is_slow_is_not_what_is_wrong() {
        let all = [
            "in time: faults < 100",
            "faults == 200",
            "parked == 200",
            "in time: faults > 100",
            "in time: gone == 0",
        ];
        let all: Vec<Expectation> = all.iter().map(|e| Expectation::parse(e).unwrap()).collect();
        let (wrong, slow) = unmet(&all, &records());
        assert_eq!(wrong[0], "parked == 200: is 199");
        assert!(wrong[1].contains("no field gone") && wrong.len() == 2, "{wrong:?}");
        assert_eq!(slow, ["in time: faults < 100: is 200"]);
    }

    #[test]
    fn what_holds() {
        for text in [
            "result.parked / result.faults >= 0.99",
            "parked/faults >= 0.99",
            "wrong_bytes == 0",
            "ve_apf.rescued == 0",
            "step.exit == 0",
            "in time: step.exit == 0",
            "len(bad) == 1",
            "mode == \"ve-apf\"",
            "ok == true",
            "none == null",
            "count(result) == 2",
            "count(internal_error) == 0",
            "or_zero(result.nothing) == 0",
            "has(result.nothing) == false",
            "(faults - parked) * 2 < 3",
            "bad.0 != \"y\"",
            "faults > -1",
            "touch.wrong_bytes == 7",
            "mode ~ \"apf\"",
            "bad ~ \"x\"",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_does_not_hold_says_the_value() {
        assert_eq!(check("parked == 200"), Err("parked == 200: is 199".into()));
        assert_eq!(
            check("mode == \"blocking\""),
            Err("mode == \"blocking\": is \"ve-apf\"".into())
        );
        assert_eq!(check("faults < parked"), Err("faults < parked: is 200, right side 199".into()));
    }

    #[test]
    fn a_missing_field_or_a_division_by_zero_fails() {
        assert!(check("nothing == 0").unwrap_err().contains("no field nothing"));
        assert!(check("faults / wrong_bytes >= 0").unwrap_err().contains("division by zero"));
        assert!(check("mode > 3").unwrap_err().contains("have no order"));
    }

    #[test]
    fn nonsense_is_refused_when_read() {
        for text in
            ["", "a", "a ==", "a == b == c", "a = 1", "(a == 1", "a == \"x", "1 2 == 3", "a ! 3"]
        {
            assert!(Expectation::parse(text).is_err(), "{text}");
        }
    }
}
