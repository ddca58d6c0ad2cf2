//! What a page holds when the pager delivers it: a function of frame and round, so that a page delivered to the wrong
//! place, late from an earlier round, or torn, shows.

/// 64-bit words in a page.
pub const PAGE_WORDS: usize = 512;

/// Start value of a page's pattern.
pub fn pattern_base(gfn: u64, round: u64) -> u64 {
    // splitmix64's finaliser
    let mut z = gfn
        .wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(0x5851_f42d_4c95_7f2d);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Word `index` of the page that starts with `base`.
pub fn pattern_word(base: u64, index: usize) -> u64 {
    base.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_differ() {
        assert_ne!(pattern_base(1, 0), pattern_base(2, 0));
        assert_ne!(pattern_base(1, 0), pattern_base(1, 1));
        assert_ne!(pattern_word(5, 0), pattern_word(5, 1));
    }
}
