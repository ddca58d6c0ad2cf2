//! The report: one file, nothing loaded from anywhere.

use super::figures::{self, Row};
use super::svg::escape;
use std::fmt::Write;

/// The page.
pub(crate) fn page(rows: &[Row], picture: Option<&str>, facts: &[(&str, String)]) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>ve-apf: a missing page parks a task</title>\n\
         <style>body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}\
         table{border-collapse:collapse;font-size:13px}th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}\
         th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}tr.first td{border-top:2px solid #999}\
         tr.ve-apf td{background:#eef7f0}svg{max-width:100%;height:auto}dl{font-size:13px;color:#555}\
         dt{float:left;clear:left;width:9em}dd{margin-left:10em}</style></head><body>\n\
         <h1>A missing page parks a task</h1>\n\
         <p>Tasks in a virtual machine touch memory that a pager delivers only after a while, beside a task that computes. \
         The same kernel, VMM, workload and latency in each mode: <b>blocking</b> (the vCPU stops), <b>kvm-apf</b> (KVM's \
         asynchronous page fault), <b>ve-apf</b> (KVM injects #VE) and, on Intel, <b>hardware</b> (the CPU raises it).</p>\n",
    );
    if let Some(svg) = picture {
        out.push_str("<h2>Who ran when</h2>\n<p>All on one time scale.</p>\n");
        out.push_str(svg);
    }
    out.push_str("<h2>Figures</h2>\n<table><tr>");
    for title in figures::TITLES {
        let _ = write!(out, "<th>{}</th>", escape(title));
    }
    out.push_str("</tr>\n");
    let mut last = "";
    for row in rows {
        let first = if row.workload == last { "" } else { " first" };
        last = &row.workload;
        let _ = write!(out, "<tr class=\"{}{first}\">", row.mode);
        for cell in figures::cells(row) {
            let _ = write!(out, "<td>{}</td>", escape(&cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n<h2>How it was made</h2>\n<dl>\n");
    for (name, value) in facts {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    out.push_str("</dl>\n</body></html>\n");
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_loads_nothing() {
        let page = super::page(&[], Some("<svg></svg>"), &[("kernel", "a<b".into())]);
        assert!(page.contains("a&lt;b"));
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
