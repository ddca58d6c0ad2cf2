//! Tests of the charts.

use super::*;

#[test]
fn numbers_are_short() {
    for (x, text) in [
        (0.0, "0"),
        (2.0, "2"),
        (2.046, "2.05"),
        (12.34, "12.3"),
        (5000.0, "5000"),
        (12_345.0, "12.3k"),
        (2e6, "2M"),
    ] {
        assert_eq!(short(x), text);
    }
    assert!(
        (nice(0.6) - 1.0).abs() < 1e-9
            && (nice(1.2) - 2.0).abs() < 1e-9
            && (nice(30.0) - 50.0).abs() < 1e-9
    );
}

#[test]
fn bars_are_stacked_to_scale() {
    let part = |value| ("r-fault".to_owned(), value, "x < y".to_owned());
    let bar = Bar { label: "a".into(), parts: vec![part(1.0), part(3.0)] };
    let groups = [Group { label: "w".into(), bars: vec![bar] }];
    let svg = bars("t", "exits", Scale::Linear, &groups, Some((2.0, "limit"))).unwrap();
    let heights: Vec<f64> = svg
        .lines()
        .filter(|l| l.starts_with("<rect"))
        .map(|l| l.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(heights.len(), 2);
    assert!((heights[1] / heights[0] - 3.0).abs() < 0.01, "{heights:?}");
    assert!(svg.contains("x &lt; y") && svg.contains("class=\"limit\""));
    assert!(bars("t", "", Scale::Linear, &[], None).is_none());
}

#[test]
fn lines_go_through_their_points() {
    let line = |class: &str| Line {
        class: class.into(),
        name: class.into(),
        points: vec![(5.0, 1.0), (100.0, 10.0), (10_000.0, 0.0)],
    };
    let marks = [("m-injected".to_owned(), 50.0, "L*".to_owned())];
    let svg = lines("t", ("L", "us"), Scale::Log, &[line("a"), line("b")], None, &marks).unwrap();
    assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 6));
    assert!(svg.contains("L*") && !svg.contains("NaN") && !svg.contains("inf"));
    assert!(lines("t", ("", ""), Scale::Linear, &[], None, &[]).is_none());
}
