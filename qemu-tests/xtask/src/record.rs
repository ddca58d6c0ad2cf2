//! The console protocol: lines that carry `@ve-apf {json}`.

use serde_json::Value;

/// What introduces a record, anywhere in a console line.
const MARK: &str = "@ve-apf ";

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// The object; it has a string field `kind`.
    pub(crate) value: Value,
}

impl Record {
    /// The record's kind, "" if it names none.
    pub(crate) fn kind(&self) -> &str {
        self.text("kind")
    }

    /// A text field, "" if there is none.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.value.get(field).and_then(Value::as_str).unwrap_or("")
    }

    /// A numeric field.
    pub(crate) fn number(&self, field: &str) -> Option<f64> {
        self.value.get(field).and_then(Value::as_f64)
    }
}

/// What a console line holds.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// Log.
    Other,
    /// One or more records, whatever stands around them.
    Records(Vec<Record>),
    /// Something that began like a record and is none: a kernel message cut into it.
    Broken(String),
}

/// Picks the records out of a line. Other writers share the console, so text may stand before and after.
pub(crate) fn parse(line: &str) -> Line {
    let mut records = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find(MARK) {
        let json = &rest[at + MARK.len()..];
        let mut stream = serde_json::Deserializer::from_str(json).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) if value.is_object() => {
                records.push(Record { value });
                rest = &json[stream.byte_offset()..];
            }
            _ => return Line::Broken(line.to_owned()),
        }
    }
    if records.is_empty() { Line::Other } else { Line::Records(records) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(line: &str) -> Vec<String> {
        match parse(line) {
            Line::Records(records) => records.iter().map(|r| r.kind().to_owned()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_record() {
        assert_eq!(kinds(r#"@ve-apf {"kind":"end"}"#), ["end"]);
    }

    #[test]
    fn text_before_and_after_does_not_matter() {
        assert_eq!(
            kinds("[    1.2] foo@ve-apf {\"kind\":\"step\",\"name\":\"}\"}[    1.3] bar\r"),
            ["step"]
        );
    }

    #[test]
    fn two_in_one_line() {
        assert_eq!(kinds(r#"@ve-apf {"kind":"a"}x@ve-apf {"kind":"b"}"#), ["a", "b"]);
    }

    #[test]
    fn a_record_cut_by_another_message_is_noticed() {
        assert!(matches!(parse(r#"@ve-apf {"kind":"st[  1.0] WARNING"#), Line::Broken(_)));
        assert!(matches!(parse("@ve-apf 5"), Line::Broken(_)));
    }

    #[test]
    fn other_lines() {
        assert_eq!(parse("Linux version 6.12"), Line::Other);
    }
}
