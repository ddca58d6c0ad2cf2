//! What the demo shows: figures, a table, a picture. And what the tests say of failures.
//!
//! In: the records of each case (`result`, `trace`, `clock`). Out: `demo.json`, a table on the terminal, `report.html`.

pub(crate) mod failures;
pub(crate) mod figures;
pub(crate) mod ftrace;
pub(crate) mod html;
pub(crate) mod svg;
pub(crate) mod timeline;
