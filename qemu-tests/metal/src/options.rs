//! The command line.

use core::ffi::CStr;
use core::str::FromStr;

/// Words `KEY=VALUE`; keys of tests begin with `veapf.`, as the Linux payload's do.
#[derive(Clone, Copy)]
pub(crate) struct Options(&'static str);

impl Options {
    /// Of this text.
    pub(crate) fn new(text: &'static CStr) -> Self {
        Self(text.to_str().unwrap_or(""))
    }

    fn find(&self, key: &str) -> Option<&'static str> {
        let mut pairs = self.0.split_whitespace().filter_map(|word| word.split_once('='));
        let is = |name: &str| name.strip_prefix("veapf.").unwrap_or(name) == key;
        pairs.find(|(name, _)| is(name)).map(|(_, value)| value)
    }

    /// A text.
    pub(crate) fn text(&self, key: &str, default: &'static str) -> &'static str {
        self.find(key).unwrap_or(default)
    }

    /// A number; the default also stands for what is none.
    pub(crate) fn number<T: FromStr>(&self, key: &str, default: T) -> T {
        self.find(key).and_then(|text| text.parse().ok()).unwrap_or(default)
    }
}
