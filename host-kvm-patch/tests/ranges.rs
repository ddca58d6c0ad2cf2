//! Every sequence of four operations on eight frames, against a set of bits.

use ve_apf_host::ranges::{Full, Range, Ranges};

const FRAMES: u64 = 8;
const ROOM: usize = 3;

fn bits(range: Range) -> u8 {
    (range.start..range.end).fold(0, |bits, frame| bits | 1 << frame)
}

fn all() -> impl Iterator<Item = Range> {
    (0..=FRAMES).flat_map(|start| (start..=FRAMES).map(move |end| Range { start, end }))
}

/// Disjoint, rising, not touching, and the same frames.
fn same(ranges: &Ranges<ROOM>, model: u8) {
    let mut frames = 0;
    let mut last = None;
    for range in ranges.get() {
        assert!(range.start < range.end && last.is_none_or(|last| last < range.start));
        frames |= bits(*range);
        last = Some(range.end);
    }
    assert_eq!(frames, model, "{ranges:?}");
}

fn explore(
    ranges: &Ranges<ROOM>,
    model: u8,
    depth: u32,
    seen: &mut std::collections::HashSet<(u8, u32)>,
) {
    same(ranges, model);
    if depth == 0 || !seen.insert((model, depth)) {
        return;
    }
    for range in all().filter(|range| range.start < range.end) {
        let frames = bits(range);
        assert_eq!(ranges.covers(range), model & frames == frames, "{ranges:?} {range:?}");
        assert_eq!(ranges.meets(range), model & frames != 0, "{ranges:?} {range:?}");

        let mut next = ranges.clone();
        match next.declare(range) {
            Ok(()) => explore(&next, model | frames, depth - 1, seen),
            Err(Full) => {
                assert_eq!(next, *ranges);
                assert_eq!(ranges.get().len(), ROOM);
            }
        }

        let mut next = ranges.clone();
        next.withdraw(range);
        let left = next.get().iter().fold(0, |all, range| all | bits(*range));
        let exact = model & !frames;
        // Only a table without room may lose more, and then only what lies above.
        assert!(left == exact || (ranges.get().len() == ROOM && left & !exact == 0));
        explore(&next, left, depth - 1, seen);
    }
}

#[test]
fn like_a_set_of_frames() {
    explore(&Ranges::new(), 0, 4, &mut std::collections::HashSet::new());
}

#[test]
fn an_empty_range_is_nothing() {
    let mut ranges = Ranges::<ROOM>::new();
    assert_eq!(ranges.declare(Range { start: 5, end: 5 }), Ok(()));
    assert_eq!(ranges.declare(Range { start: 6, end: 5 }), Ok(()));
    ranges.withdraw(Range { start: 6, end: 5 });
    assert!(ranges.get().is_empty());
}

#[test]
fn the_end_of_the_address_space() {
    let mut ranges = Ranges::<ROOM>::new();
    let whole = Range { start: 0, end: 1 << 40 };
    assert_eq!(ranges.declare(whole), Ok(()));
    assert!(ranges.covers(whole) && ranges.covers(Range { start: (1 << 40) - 1, end: 1 << 40 }));
    assert!(!ranges.covers(Range { start: 0, end: u64::MAX }));
    ranges.withdraw(Range { start: 0, end: u64::MAX });
    assert!(ranges.get().is_empty());
}
