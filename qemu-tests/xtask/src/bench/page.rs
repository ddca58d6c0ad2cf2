//! report.html: one file, nothing loaded from anywhere, legible in light and dark.

use super::chart::short;
use super::charts::{REASONS, charts};
use super::row::{Bench, Row};
use super::summary::MODES;
use super::targets;
use crate::report::svg::escape;
use std::fmt::Write;

/// Of the page, and of pictures with its charts.
pub(super) const STYLE: &str = include_str!("report.css");

/// The page.
pub(super) fn page(bench: &Bench) -> String {
    let kind = if bench.quick { "quick run" } else { "full run" };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>ve-apf: benchmark</title>\n<style>{STYLE}</style></head><body>\n<h1>Missing pages, four ways</h1>\n\
         <p>The same kernel, VMM, pager, workload and latency in each mode. <b>blocking</b>: the vCPU stops. <b>kvm-apf</b>: KVM's \
         asynchronous page fault. <b>injected</b>: KVM injects #VE. <b>hardware</b>: the CPU raises it. {kind}, kernel {}, \
         PREEMPT, HZ=250, -O2. Beside the tasks that fault one computes; where none does there is no useful share.</p>\n",
        escape(&bench.kernel)
    );
    legend(&mut out);
    out.push_str("<h2>What must lead</h2>\n");
    targets_table(&mut out, bench);
    for name in bench.lanes() {
        let _ = write!(
            out,
            "<h2>{name}</h2>\n<p class=\"about\">{}. {}</p>\n<div class=\"charts\">\n",
            escape(&bench.about(name)),
            match name {
                "vmx" => "Time is a count of instructions: figures repeat.",
                _ => "Times are an emulator's: compare modes with each other only.",
            }
        );
        for (title, note, chart) in charts(bench, name) {
            let Some(chart) = chart else { continue };
            let _ = writeln!(
                out,
                "<figure><figcaption><b>{}</b> {}</figcaption>{chart}</figure>",
                escape(title),
                escape(&note)
            );
        }
        out.push_str("</div>\n");
    }
    out.push_str("<h2>Records</h2>\n");
    records(&mut out, bench);
    out.push_str("</body></html>\n");
    out
}

fn legend(out: &mut String) {
    out.push_str("<p class=\"key\">");
    for mode in MODES {
        let _ = write!(out, "<span><i class=\"m-{mode}\"></i>{mode}</span>");
    }
    out.push_str("</p>\n<p class=\"key\">exits: ");
    for (reason, name) in REASONS {
        let _ = write!(out, "<span><i class=\"r-{reason}\"></i>{name}</span>");
    }
    out.push_str("</p>\n");
}

fn targets_table(out: &mut String, bench: &Bench) {
    let verdicts = targets::all(bench);
    let [met, not_met, unknown] = targets::counts(&verdicts);
    let _ = writeln!(
        out,
        "<p><b class=\"yes\">{met} met</b>, <b class=\"no\">{not_met} not met</b>, {unknown} not measured or not resolved. The count says what bounds a figure.</p>"
    );
    out.push_str("<table class=\"targets\"><tr><th>figure</th><th>target</th><th>measured</th><th>met</th><th>count</th></tr>\n");
    for v in verdicts {
        let (class, met) = match v.met {
            Some(true) => ("yes", "yes"),
            Some(false) => ("no", "no"),
            None => ("none", "-"),
        };
        let cells = [&v.figure, &v.target, v.measured.as_deref().unwrap_or("-"), met, &v.count];
        let _ = write!(out, "<tr class=\"{class}\">");
        for cell in cells {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn records(out: &mut String, bench: &Bench) {
    const COLUMNS: [(&str, &str); 12] = [
        ("faults", "faults"),
        ("parked", "parked"),
        ("kernel_faults", "in kernel"),
        ("kernel_parked", "parked"),
        ("exits_per_fault", "exits/fault"),
        ("useful_share", "useful"),
        ("cost_us_per_fault", "cost, us"),
        ("late_p50_us", "p50-L, us"),
        ("late_p99_us", "p99-L, us"),
        ("interrupts", "interrupts"),
        ("suspended", "suspended"),
        ("rescued", "rescued"),
    ];
    out.push_str("<div class=\"wide\"><table><tr><th>lane</th><th>workload</th><th>mode</th><th>vCPUs</th><th>tasks</th><th>L, us</th>");
    for (_, title) in COLUMNS {
        let _ = write!(out, "<th>{title}</th>");
    }
    out.push_str("</tr>\n");
    let mut rows: Vec<&Row> = bench.records.iter().collect();
    let mode = |row: &Row| MODES.iter().position(|m| *m == row.key.mode);
    rows.sort_by_key(|r| {
        let key = &r.key;
        (key.lane.clone(), key.workload.clone(), key.vcpus, key.tasks, key.latency_us, mode(r))
    });
    for row in rows {
        let key = &row.key;
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td><i class=\"m-{mode}\"></i>{mode}</td><td>{}</td><td>{}</td><td>{}</td>",
            key.lane,
            key.workload,
            key.vcpus,
            key.tasks,
            key.latency_us,
            mode = key.mode
        );
        for (field, _) in COLUMNS {
            let cell = row.number(field).map_or_else(|| "-".to_owned(), short);
            let why =
                row.absent.get(field).or_else(|| row.how.get(field)).map_or("", String::as_str);
            let _ = write!(out, "<td title=\"{}\">{cell}</td>", escape(why));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{bench, row};
    use super::*;
    use crate::cases::Mode;
    use serde_json::json;

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let modes = [Mode::Blocking, Mode::KvmApf, Mode::VeApf, Mode::Hardware];
        let probe =
            json!({"park": {"median": 700}, "wake": {"median": 900}, "host": {"quartile": 9000}});
        let records = modes
            .into_iter()
            .flat_map(|mode| {
                [
                    row(mode, "user_touch", json!({"latency_us": 5})),
                    row(mode, "user_touch", json!({})),
                    row(mode, "one_at_a_time_counted", json!({"probe": probe})),
                    row(mode, "burst", json!({"tasks": 16})),
                    row(mode, "kernel_read", json!({"kernel_faults": 9, "kernel_parked": 9})),
                ]
            })
            .collect();
        let bench = Bench { kernel: "a<b".into(), ..bench(records) };
        let page = page(&bench);
        assert!(page.contains("a&lt;b") && page.contains("quick run"));
        assert_eq!(page.matches("<figure>").count(), 7);
        assert_eq!(page.matches("<figure>").count(), page.matches("</svg>").count());
        for outside in ["src=", "href=", "@import", "url(", "NaN", "inf\""] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme"));
    }
}
