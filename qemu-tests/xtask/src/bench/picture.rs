//! A lane's charts as one SVG, for documents, which cannot hold the report.

use super::chart::{HEIGHT, WIDTH};
use super::charts::{REASONS, charts};
use super::page::STYLE;
use super::row::Bench;
use super::summary::{LANES, MODES};
use crate::report::svg::text;
use std::collections::BTreeMap;
use std::fmt::Write;

const COLUMNS: usize = 2;
/// Around each chart.
const GAP: f64 = 16.0;
const LINE: f64 = 15.0;
/// Letters of the caption's size that a chart is wide.
const LETTERS: usize = 95;
/// Over all of them, with what the colours are.
const HEAD: f64 = 48.0;

/// Pictures, by lane.
pub(super) type Pictures = BTreeMap<&'static str, String>;

/// Of each lane in which something was measured.
pub(super) fn pictures(bench: &Bench) -> Pictures {
    LANES.into_iter().filter_map(|lane| Some((lane, picture(bench, lane)?))).collect()
}

/// A picture's file, beside performance.md.
pub(super) fn name(lane: &str) -> String {
    format!("performance-{lane}.svg")
}

/// All charts of `lane`, two beside each other; none if nothing was measured there.
fn picture(bench: &Bench, lane: &str) -> Option<String> {
    let wrapped = |note: &str| -> Vec<String> {
        textwrap::wrap(note, LETTERS).into_iter().map(Into::into).collect()
    };
    let drawn: Vec<(&str, Vec<String>, String)> = charts(bench, lane)
        .into_iter()
        .filter_map(|(title, note, chart)| Some((title, wrapped(&note), chart?)))
        .collect();
    if drawn.is_empty() {
        return None;
    }
    let lines = drawn.iter().map(|(_, note, _)| note.len()).max();
    #[expect(clippy::cast_precision_loss, reason = "coordinates")]
    let caption = LINE * (2 + lines.unwrap_or(0)) as f64;
    let (across, down) = (WIDTH + GAP, caption + HEIGHT + GAP);
    let (mut right, mut body, mut y) = (0.0_f64, String::new(), HEAD);
    for row in drawn.chunks(COLUMNS) {
        let mut x = GAP;
        for (title, note, chart) in row {
            text(&mut body, x, y + LINE, "title", title);
            let mut line = y + LINE;
            for words in note {
                line += LINE;
                text(&mut body, x, line, "about", words);
            }
            let place = format!(
                "<svg x=\"{x}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"",
                y + caption
            );
            body.push_str(&chart.replacen("<svg", &place, 1));
            x += across;
        }
        right = right.max(x);
        y += down;
    }
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {right} {y}\" width=\"{right}\" height=\"{y}\">\n\
         <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{right}\" height=\"{y}\"/>\n"
    );
    key(&mut out, LINE, MODES.iter().map(|mode| (format!("m-{mode}"), *mode)));
    let reasons = REASONS.iter().map(|(reason, name)| (format!("r-{reason}"), *name));
    key(&mut out, 2.0 * LINE, reasons);
    out.push_str(&body);
    out.push_str("</svg>\n");
    Some(out)
}

/// A row of colours and what each is: class and name.
fn key<'a>(out: &mut String, y: f64, names: impl Iterator<Item = (String, &'a str)>) {
    let mut x = GAP;
    for (class, name) in names {
        let _ = write!(
            out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"9\" height=\"9\"/>",
            y - 9.0
        );
        text(out, x + 13.0, y, "key", name);
        #[expect(clippy::cast_precision_loss, reason = "coordinates")]
        let letters = name.len() as f64;
        x += 36.0 + 6.0 * letters;
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{bench, row};
    use super::*;
    use crate::cases::Mode;
    use serde_json::json;

    #[test]
    fn a_lane_is_one_picture_and_another_none() {
        let records = vec![
            row(Mode::KvmApf, "burst", json!({"tasks": 16})),
            row(Mode::VeApf, "burst", json!({"tasks": 16})),
            row(Mode::VeApf, "kernel_read", json!({"kernel_faults": 9, "kernel_parked": 9})),
        ];
        let lane = records[0].key.lane.clone();
        let bench = Bench { kernel: "a".into(), ..bench(records) };
        let svg = picture(&bench, &lane).unwrap();
        let drawn = charts(&bench, &lane).iter().filter(|(.., chart)| chart.is_some()).count();
        assert!(drawn > 1);
        assert_eq!(svg.matches("<svg").count(), 1 + drawn);
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        for outside in ["href=", "@import", "url(", "NaN", "inf\""] {
            assert!(!svg.contains(outside), "{outside}");
        }
        assert!(picture(&bench, "no such lane").is_none());
    }
}
