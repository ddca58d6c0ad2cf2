//! Errors: one line that says what is wrong and what to do, and an exit code.

use std::fmt;

/// What went wrong, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A test case failed.
    Case = 1,
    /// The command line asks for something that makes no sense.
    Usage = 2,
    /// A tool, the disk or the network is missing.
    Environment = 3,
    /// A kernel tree is of another version, or a patch does not apply.
    Tree = 4,
}

/// An error with a remedy.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Decides the exit code.
    pub(crate) kind: Kind,
    what: String,
    todo: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if !self.todo.is_empty() {
            write!(f, ": {}", self.todo)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// An error of `kind`: `what` happened, `todo` is what the user can do.
pub(crate) fn fail(kind: Kind, what: impl Into<String>, todo: impl Into<String>) -> anyhow::Error {
    Failure { kind, what: what.into(), todo: todo.into() }.into()
}

/// The line for the user and the exit code.
pub(crate) fn describe(error: &anyhow::Error) -> (String, u8) {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let mut text = chain.join(": ");
    let code = error
        .chain()
        .find_map(|e| e.downcast_ref::<Failure>())
        .map_or(Kind::Environment, |f| f.kind);
    if error.chain().any(is_disk_full) {
        text.push_str(": free some disk space and run it again");
    }
    (one_line(&text), code as u8)
}

fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| {
        matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    })
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_failure_is_one_line_with_its_code() {
        let error = fail(Kind::Tree, "no\nkernel", "get one");
        assert_eq!(describe(&error), ("no; kernel: get one".into(), 4));
    }

    #[test]
    fn a_wrapped_failure_keeps_its_code() {
        let error = Err::<(), _>(fail(Kind::Tree, "a", "b")).context("outer").unwrap_err();
        assert_eq!(describe(&error), ("outer: a: b".into(), 4));
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let (text, code) = describe(&anyhow::Error::from(full).context("writing x"));
        assert!(text.contains("free some disk space"), "{text}");
        assert_eq!(code, 3);
    }
}
