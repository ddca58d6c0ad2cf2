//! Records: one line `@ve-apf {json}` each on standard output.

use std::io::Write;

use serde_json::{Map, Value, json};

/// Prints records; knows what goes into each of them.
#[derive(Debug, Clone)]
pub struct Reporter {
    mode: String,
    vcpus: u8,
}

impl Reporter {
    /// Every record gets these two fields.
    pub fn new(mode: &str, vcpus: u8) -> Reporter {
        Reporter { mode: mode.to_owned(), vcpus }
    }

    /// Prints one record. The line starts with a newline if a console line may be unfinished before it.
    pub fn print(&self, mut record: Map<String, Value>) {
        record.entry("mode").or_insert_with(|| json!(self.mode));
        record.entry("vcpus").or_insert_with(|| json!(self.vcpus));
        let mut out = std::io::stdout().lock();
        // Nobody to tell if our own standard output is gone.
        let _ = writeln!(out, "@ve-apf {}", Value::Object(record)).and_then(|()| out.flush());
    }

    /// Prints a record given as a JSON object; anything else becomes the field "value".
    pub fn print_value(&self, kind: &str, value: Value) {
        let mut record = match value {
            Value::Object(map) => map,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        record.entry("kind").or_insert_with(|| json!(kind));
        self.print(record);
    }

    /// Prints the guest's JSON text, joined with the counters of its measured section.
    pub fn print_guest(&self, text: &[u8], counters: Option<Map<String, Value>>) {
        let mut record = match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => map,
            _ => {
                let raw = String::from_utf8_lossy(text);
                Map::from_iter([
                    ("kind".to_owned(), json!("garbled")),
                    ("text".to_owned(), json!(raw)),
                ])
            }
        };
        for (name, value) in counters.into_iter().flatten() {
            record.entry(name).or_insert(value);
        }
        self.print(record);
    }
}
