//! The table of failures and lifecycle events, from what the last test run showed.
//!
//! `qemu-tests/failures.toml` lists the events; what it says of KVM and of ve-apf may hold `{expression}` over the records
//! of the case that proves it, as expectations do. Nothing is said that the run did not show: a case that failed or was
//! not run leaves its cell empty but for that.

use crate::expect;
use crate::record::Record;
use crate::runner::{Outcome, Status};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::Path;

/// `failures.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    group: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    title: String,
    row: Vec<Row>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    event: String,
    stock: Cell,
    ve_apf: Cell,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cell {
    says: String,
    /// Cases that show it; placeholders are of the first. None: known from the source, which `says` names.
    #[serde(default)]
    cases: Vec<String>,
}

impl Table {
    /// Reads the list, and checks that its cases are among `names`.
    pub(crate) fn load(path: &Path, names: &[&str]) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let table: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let rows = table.group.iter().flat_map(|group| &group.row);
        for (row, cell) in rows.flat_map(|row| [(row, &row.stock), (row, &row.ve_apf)]) {
            if let Some(case) = cell.cases.iter().find(|case| !names.contains(&case.as_str())) {
                bail!("{}: {:?}: there is no case {case:?}", path.display(), row.event);
            }
        }
        Ok(table)
    }

    /// The page, in Markdown.
    pub(crate) fn render(&self, outcomes: &[Outcome]) -> String {
        let mut out = String::from(HEAD);
        for group in &self.group {
            let _ = write!(out, "\n## {}\n\n{COLUMNS}\n", group.title);
            for row in &group.row {
                let cases: Vec<&str> = [&row.stock, &row.ve_apf]
                    .iter()
                    .flat_map(|cell| &cell.cases)
                    .map(String::as_str)
                    .collect();
                let (stock, ours) = (row.stock.render(outcomes), row.ve_apf.render(outcomes));
                let _ =
                    writeln!(out, "| {} | {stock} | {ours} | {} |", row.event, cases.join(", "));
            }
        }
        out
    }
}

const HEAD: &str = "\
# What becomes of it

Written by `cargo xtask test`, from what its cases showed; `qemu-tests/failures.toml` lists the events. A cell without a case is
known from the source it names.
";

const COLUMNS: &str = "| event | stock KVM | ve-apf | case |\n|---|---|---|---|";

impl Cell {
    fn render(&self, outcomes: &[Outcome]) -> String {
        for case in &self.cases {
            match outcomes.iter().find(|outcome| outcome.name == *case) {
                Some(Outcome { status: Status::Passed, .. }) => {}
                Some(Outcome { status: Status::Failed, .. }) => return format!("({case} failed)"),
                _ => return format!("({case} was not run)"),
            }
        }
        let first = self.cases.first();
        let records = first.and_then(|case| outcomes.iter().find(|outcome| outcome.name == *case));
        fill(&self.says, records.map_or(&[], |outcome| &outcome.records))
    }
}

/// Puts values for the `{expression}`s of a text.
fn fill(text: &str, records: &[Record]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((expression, after)) = after.split_once('}') else { break };
        out.push_str(before);
        out.push_str(&expect::value(expression, records).unwrap_or_else(|why| format!("({why})")));
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cases, paths, record};

    #[test]
    fn the_list_names_cases_that_exist() {
        let suite = cases::load(&paths::root().join("qemu-tests/cases"), "test").unwrap();
        let names: Vec<&str> = suite.cases.iter().map(|case| case.name.as_str()).collect();
        Table::load(&paths::root().join("qemu-tests/failures.toml"), &names).unwrap();
    }

    #[test]
    fn values_come_from_records() {
        let line = r#"@ve-apf {"kind":"result","workload":"w","ms":3.25,"s":{"a":"SIGBUS"}}"#;
        let record::Line::Records(records) = record::parse(line) else { panic!("a record") };
        assert_eq!(fill("{result.s.a} after {result.ms * 2} ms", &records), "SIGBUS after 6.5 ms");
        assert_eq!(fill("{result.x}", &records), "(no field result.x)");
        assert_eq!(fill("open {", &records), "open {");
    }

    #[test]
    fn nothing_is_claimed_that_was_not_shown() {
        let says = || "fine".to_owned();
        let cell = Cell { says: says(), cases: vec!["a".into(), "b".into()] };
        let outcome = |name: &str, status| Outcome::new(name, status, Vec::new());
        let (a, b) = (outcome("a", Status::Passed), outcome("b", Status::Passed));
        assert_eq!(cell.render(&[a, b]), "fine");
        let (a, b) = (outcome("a", Status::Passed), outcome("b", Status::Failed));
        assert_eq!(cell.render(&[a, b]), "(b failed)");
        assert_eq!(cell.render(&[outcome("a", Status::Passed)]), "(b was not run)");
        assert_eq!(Cell { says: says(), cases: Vec::new() }.render(&[]), "fine");
    }
}
