//! The picture: one block per mode, one line per task and vCPU, the same time scale for all.

use super::timeline::{Lane, Span, State, Timeline};
use std::fmt::Write;

const WIDTH: f64 = 1230.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 246.0;
const LANE: f64 = 15.0;
const BAR: f64 = 11.0;
/// The picture's resolution: columns of a quarter of a pixel.
const COLUMNS_PER_PIXEL: f64 = 4.0;

const COLOURS: &[(State, &str, &str)] = &[
    (State::Running, "#2f9e57", "running"),
    (State::Runnable, "#edb432", "runnable"),
    (State::Parked, "#c3d3ea", "parked (or asleep)"),
    (State::Stopped, "#d1453b", "stopped with its vCPU"),
    (State::Halted, "#b9b9b9", "vCPU halted"),
];
const VCPU_RUNNING: &str = "#41618f";

/// A mode's title and its line of text under it.
pub(crate) struct Block<'a> {
    /// "ve-apf".
    pub(crate) title: &'a str,
    /// A sentence about what is seen.
    pub(crate) note: String,
    /// What to draw.
    pub(crate) timeline: &'a Timeline,
}

/// Draws the blocks; time 0 to `length` ns.
#[expect(clippy::cast_precision_loss, reason = "coordinates")]
pub(crate) fn draw(blocks: &[Block<'_>], length: u64) -> String {
    let scale = (WIDTH - LEFT - RIGHT) / length.max(1) as f64;
    let mut body = String::new();
    let mut y = 34.0;
    legend(&mut body);
    for block in blocks {
        text(&mut body, 8.0, y + 14.0, "title", block.title);
        text(&mut body, LEFT, y + 14.0, "note", &block.note);
        y += 22.0;
        let top = y;
        let mut vcpus = false;
        for lane in &block.timeline.lanes {
            let is_vcpu = lane.name.starts_with("vcpu");
            if is_vcpu && !vcpus {
                y += 4.0;
            }
            vcpus = is_vcpu;
            text(&mut body, LEFT - 6.0, y + BAR - 1.0, "name", &lane.name);
            spans(&mut body, lane, y, scale, length.min(block.timeline.length));
            text(
                &mut body,
                WIDTH - RIGHT + 8.0,
                y + BAR - 1.0,
                "share",
                &shares(lane, length.min(block.timeline.length)),
            );
            y += LANE;
        }
        axis(&mut body, top, y, scale, length);
        y += 30.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"system-ui, sans-serif\">\n<style>.title{{font-size:14px;font-weight:600}}\
         .note{{font-size:12px;fill:#555}}.name{{font-size:11px;text-anchor:end}}.share{{font-size:10px;fill:#555}}\
         .tick{{font-size:10px;fill:#777;text-anchor:middle}}.key{{font-size:11px}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{y}\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn legend(body: &mut String) {
    let mut x = LEFT;
    let vcpu = (State::Running, VCPU_RUNNING, "vCPU running");
    for (_, colour, name) in COLOURS.iter().take(4).chain([&vcpu]).chain(&COLOURS[4..]) {
        let _ = writeln!(
            body,
            "<rect x=\"{x:.0}\" y=\"8\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        text(body, x + 16.0, 18.0, "key", name);
        #[expect(clippy::cast_precision_loss, reason = "a word's length")]
        let width = name.len() as f64 * 6.2;
        x += 36.0 + width;
    }
}

/// A line of text.
pub(crate) fn text(body: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let content = escape(content);
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{content}</text>");
}

/// For text in SVG and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn spans(body: &mut String, lane: &Lane, y: f64, scale: f64, length: u64) {
    for (from, to, state) in rasterize(&lane.spans, scale * COLUMNS_PER_PIXEL, length) {
        let colour = if state == State::Running && lane.name.starts_with("vcpu") {
            VCPU_RUNNING
        } else {
            COLOURS.iter().find(|c| c.0 == state).map_or("#000", |c| c.1)
        };
        let (x, width) = (LEFT + from / COLUMNS_PER_PIXEL, (to - from) / COLUMNS_PER_PIXEL);
        let _ = writeln!(
            body,
            "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{BAR}\" fill=\"{colour}\"/>"
        );
    }
}

/// Columns in which one state takes most of the time; equal neighbours become one. So the size of
/// the picture does not grow with the number of events.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "columns"
)]
fn rasterize(spans: &[Span], columns_per_ns: f64, length: u64) -> Vec<(f64, f64, State)> {
    let mut out: Vec<(f64, f64, State)> = Vec::new();
    let columns = (length as f64 * columns_per_ns).ceil() as usize;
    let mut next = 0;
    for column in 0..columns {
        let (from, to) = (column as f64 / columns_per_ns, (column + 1) as f64 / columns_per_ns);
        let mut best: Option<(f64, State)> = None;
        let mut parts: Vec<(State, f64)> = Vec::new();
        while spans.get(next).is_some_and(|s| (s.1 as f64) <= from) {
            next += 1;
        }
        for &(a, b, state) in spans[next..].iter().take_while(|s| (s.0 as f64) < to) {
            let part = (b as f64).min(to) - (a as f64).max(from);
            match parts.iter_mut().find(|p| p.0 == state) {
                Some(p) => p.1 += part,
                None => parts.push((state, part)),
            }
        }
        for (state, part) in parts {
            if best.is_none_or(|(most, _)| part > most) {
                best = Some((part, state));
            }
        }
        let Some((_, state)) = best else { continue };
        let x = column as f64;
        match out.last_mut() {
            Some(last) if last.2 == state && (last.1 - x).abs() < 0.5 => last.1 = x + 1.0,
            _ => out.push((x, x + 1.0, state)),
        }
    }
    out
}

fn shares(lane: &Lane, length: u64) -> String {
    let shares = lane.shares(length);
    let percent = |state: State| shares.get(&state).copied().unwrap_or(0.0) * 100.0;
    if lane.name.starts_with("vcpu") {
        return format!("runs {:.0} %", percent(State::Running));
    }
    let mut text = format!("runs {:.0} %", percent(State::Running));
    for (state, name) in [(State::Parked, "parked"), (State::Stopped, "stopped")] {
        if percent(state) >= 0.5 {
            let _ = write!(text, ", {name} {:.0} %", percent(state));
        }
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "coordinates")]
fn axis(body: &mut String, top: f64, bottom: f64, scale: f64, length: u64) {
    let ms = length as f64 / 1e6;
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        .into_iter()
        .find(|s| ms / s <= 12.0)
        .unwrap_or(5000.0);
    let mut at = 0.0;
    while at <= ms {
        let x = LEFT + at * 1e6 * scale;
        let _ = writeln!(
            body,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" stroke=\"#000\" stroke-opacity=\"0.12\"/>"
        );
        text(body, x, bottom + 11.0, "tick", &format!("{at:.0} ms"));
        at += step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_take_the_state_that_lasts_longest() {
        let spans = [(0, 10, State::Running), (10, 11, State::Parked), (11, 40, State::Runnable)];
        let got = rasterize(&spans, 0.1, 40);
        assert_eq!(got, [(0.0, 1.0, State::Running), (1.0, 4.0, State::Runnable)]);
    }

    #[test]
    fn a_picture_is_well_formed() {
        let lane = Lane { name: "a<b0".into(), spans: vec![(0, 50_000_000, State::Running)] };
        let timeline = Timeline { mode: "x".into(), length: 50_000_000, lanes: vec![lane] };
        let svg =
            draw(&[Block { title: "x & y", note: String::new(), timeline: &timeline }], 50_000_000);
        assert!(svg.contains("a&lt;b0") && svg.contains("x &amp; y") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<svg").count(), 1);
    }
}
