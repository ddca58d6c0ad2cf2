//! Charts as SVG inside the report or a picture, whose style sheet has the colours.

use crate::report::svg::{escape, text};
use std::fmt::Write;

/// Of a chart.
pub(super) const WIDTH: f64 = 560.0;
/// Of a chart.
pub(super) const HEIGHT: f64 = 300.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 46.0;
/// Of a bar with the gap beside it.
const WIDEST: f64 = 64.0;
/// Of a bar with the gap beside it, if its number is to have the usual size.
const NARROW: f64 = 26.0;

/// Of equal steps, or of equal factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// From a power of ten.
    Log,
}

/// A bar made of parts, with a class of the style sheet each.
pub(super) struct Bar {
    /// Under it.
    pub(super) label: String,
    /// From the bottom up: class, value, what it is.
    pub(super) parts: Vec<(String, f64, String)>,
}

/// Bars that stand together, and what is under them.
pub(super) struct Group {
    /// The workload.
    pub(super) label: String,
    /// One for each mode.
    pub(super) bars: Vec<Bar>,
}

/// A line through points, by x.
pub(super) struct Line {
    /// Its class.
    pub(super) class: String,
    /// For its points' titles.
    pub(super) name: String,
    /// x and y.
    pub(super) points: Vec<(f64, f64)>,
}

/// The plane in which something is drawn.
struct Plane {
    top: f64,
    scale: Scale,
    bottom: f64,
    body: String,
}

impl Plane {
    fn new(highest: f64, lowest: f64, scale: Scale, unit: &str) -> Self {
        let (bottom, top, step) = match scale {
            Scale::Linear => {
                let step = nice(highest / 4.0);
                (0.0, (highest / step).ceil().max(1.0) * step, step)
            }
            Scale::Log => {
                let bottom = lowest.max(1e-3).log10().floor();
                (bottom, highest.max(1.0).log10().ceil().max(bottom + 1.0), 1.0)
            }
        };
        let mut plane = Self { top, scale, bottom, body: String::new() };
        let mut at = bottom;
        while at <= top + step / 100.0 {
            let value = if scale == Scale::Log { 10f64.powf(at) } else { at };
            let y = plane.y(value);
            let _ = writeln!(
                plane.body,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            plane.text(LEFT - 6.0, y + 3.5, "tick end", &short(value));
            at += step;
        }
        plane.text(4.0, 11.0, "tick", unit);
        plane
    }

    fn y(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Log { value.max(1e-9).log10() } else { value };
        let part = ((value - self.bottom) / (self.top - self.bottom)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)
    }

    fn text(&mut self, x: f64, y: f64, class: &str, content: &str) {
        text(&mut self.body, x, y, class, content);
    }

    fn svg(self, title: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
            escape(title),
            self.body
        )
    }
}

/// Bars in groups; `limit` is drawn across, dashed, with what it is. `None`: nothing to draw.
pub(super) fn bars(
    title: &str,
    unit: &str,
    scale: Scale,
    groups: &[Group],
    limit: Option<(f64, &str)>,
) -> Option<String> {
    let sum = |bar: &Bar| bar.parts.iter().map(|p| p.1).sum::<f64>();
    let all = || groups.iter().flat_map(|g| &g.bars).map(sum);
    let highest = all().chain(limit.map(|l| l.0)).fold(0.0, f64::max);
    let count = all().count();
    if count == 0 || highest <= 0.0 {
        return None;
    }
    let lowest = all().filter(|v| *v > 0.0).fold(highest, f64::min);
    let mut plane = Plane::new(highest, lowest, scale, unit);
    #[expect(clippy::cast_precision_loss, reason = "coordinates")]
    let slots = count as f64 + groups.len() as f64 * 0.6;
    let slot = ((WIDTH - LEFT - RIGHT) / slots).min(WIDEST);
    // A few bars stand in the middle.
    let mut x = LEFT + (WIDTH - LEFT - RIGHT - slot * slots) / 2.0;
    // Numbers of many bars would run into each other.
    let value = if slot < NARROW { "value narrow" } else { "value" };
    for group in groups {
        let from = x + slot * 0.3;
        x = from;
        for bar in &group.bars {
            let total = sum(bar);
            let mut below = 0.0;
            for (class, value, what) in &bar.parts {
                let (y0, y1) = (plane.y(below), plane.y(below + value));
                let y0 = if below == 0.0 { HEIGHT - BOTTOM } else { y0 };
                let _ = writeln!(
                    plane.body,
                    "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y1:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                    x + slot * 0.1,
                    slot * 0.8,
                    (y0 - y1).max(0.0),
                    escape(&format!("{} {}: {what}", group.label, bar.label)),
                );
                below += value;
            }
            let top = plane.y(total) - 4.0;
            plane.text(x + slot / 2.0, top, value, &short(total));
            plane.text(x + slot / 2.0, HEIGHT - BOTTOM + 13.0, "bar", &bar.label);
            x += slot;
        }
        plane.text((from + x) / 2.0, HEIGHT - BOTTOM + 30.0, "group", &group.label);
        x += slot * 0.3;
    }
    if let Some((value, what)) = limit {
        across(&mut plane, value, what);
    }
    Some(plane.svg(title))
}

/// Lines over a logarithmic x; `marks` are drawn upright: class, x, what it is.
pub(super) fn lines(
    title: &str,
    units: (&str, &str),
    scale: Scale,
    lines: &[Line],
    limit: Option<(f64, &str)>,
    marks: &[(String, f64, String)],
) -> Option<String> {
    let all = || lines.iter().flat_map(|l| &l.points);
    let xs = || all().map(|p| p.0);
    let (least, most) = (xs().fold(f64::MAX, f64::min), xs().fold(0.0, f64::max));
    if most <= 0.0 {
        return None;
    }
    let highest = all().map(|p| p.1).chain(limit.map(|l| l.0)).fold(0.0, f64::max);
    let lowest = all().map(|p| p.1).filter(|y| *y > 0.0).fold(highest, f64::min);
    let mut plane = Plane::new(highest, lowest, scale, units.1);
    let wide = (most.log10() - least.log10()).max(1e-9);
    let at =
        |x: f64| LEFT + 20.0 + (x.log10() - least.log10()) / wide * (WIDTH - LEFT - RIGHT - 60.0);
    let mut ticks: Vec<f64> = xs().collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for x in ticks {
        plane.text(at(x), HEIGHT - BOTTOM + 14.0, "bar", &short(x));
    }
    plane.text((WIDTH + LEFT) / 2.0, HEIGHT - BOTTOM + 30.0, "group", units.0);
    for (n, (class, x, what)) in marks.iter().enumerate() {
        let x = at(x.clamp(least, most));
        let _ = writeln!(
            plane.body,
            "<line class=\"mark {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
        #[expect(clippy::cast_precision_loss, reason = "coordinates")]
        plane.text(x + 4.0, TOP + 10.0 + 12.0 * n as f64, "note", what);
    }
    for line in lines {
        let path: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at(*x), plane.y(*y))).collect();
        let _ = writeln!(
            plane.body,
            "<polyline class=\"line {}\" points=\"{}\"/>",
            line.class,
            path.join(" ")
        );
        for (x, y) in &line.points {
            let (cx, cy) = (at(*x), plane.y(*y));
            let what = escape(&format!("{}: {} at {}", line.name, short(*y), short(*x)));
            let _ = writeln!(
                plane.body,
                "<circle class=\"{}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"><title>{what}</title></circle>",
                line.class
            );
        }
    }
    if let Some((value, what)) = limit {
        across(&mut plane, value, what);
    }
    Some(plane.svg(title))
}

fn across(plane: &mut Plane, value: f64, what: &str) {
    let y = plane.y(value);
    let _ = writeln!(
        plane.body,
        "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
        WIDTH - RIGHT
    );
    plane.text(WIDTH - RIGHT, y - 4.0, "note end", what);
}

/// 1, 2 or 5 times a power of ten, not below `x`.
fn nice(x: f64) -> f64 {
    let power = 10f64.powf(x.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|n| *n >= x * 0.999).unwrap_or(power)
}

/// Three digits or so.
pub(super) fn short(x: f64) -> String {
    let of = |x: f64| {
        let digits = if x >= 100.0 || (x - x.round()).abs() < 1e-9 {
            0
        } else if x >= 10.0 {
            1
        } else {
            2
        };
        format!("{x:.digits$}")
    };
    match x {
        x if x >= 1e6 => format!("{}M", of(x / 1e6)),
        x if x >= 1e4 => format!("{}k", of(x / 1e3)),
        x => of(x),
    }
}

#[cfg(test)]
mod tests;
