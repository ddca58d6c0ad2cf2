//! Text of limited length, and fields of a JSON object.

use core::fmt::{self, Display, Write};

/// At most N bytes; what is beyond is cut off.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// Nothing.
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// What was written.
    pub(crate) fn as_str(&self) -> &str {
        core::str::from_utf8(self.bytes.get(..self.len).unwrap_or_default()).unwrap_or("")
    }

    /// Adds `"name":value`, with a comma if it is not the first field.
    pub(crate) fn field(&mut self, name: &str, value: impl Display) {
        let comma = if self.len == 0 || self.as_str().ends_with(['{', '[']) { "" } else { "," };
        // A text only ever gets shorter, it does not fail.
        let _ = write!(self, "{comma}\"{name}\":{value}");
    }

    /// Adds `"name":"value"`, quotes and control characters in it replaced.
    pub(crate) fn string(&mut self, name: &str, value: impl Display) {
        self.field(name, "\"");
        let _ = write!(Clean(self), "{value}");
        let _ = self.write_char('"');
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(text.bytes()) {
            *to = if from.is_ascii() { from } else { b'?' };
            self.len += 1;
        }
        Ok(())
    }
}

struct Clean<'a, const N: usize>(&'a mut Text<N>);

impl<const N: usize> Write for Clean<'_, N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| {
            self.0.write_char(if c.is_control() || matches!(c, '"' | '\\') { '\'' } else { c })
        })
    }
}
