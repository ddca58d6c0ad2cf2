//! Dirty logs.

use ve_apf_testdev::Run;

/// Every frame of these runs.
pub(super) fn frames(runs: &[Run]) -> impl Iterator<Item = u64> + '_ {
    runs.iter().flat_map(|run| run.frames())
}

/// Is the frame, the one so far into its memslot, dirty?
pub(super) fn is_set(log: &[u64], at: u64) -> bool {
    let word = usize::try_from(at / 64).ok().and_then(|word| log.get(word));
    word.is_some_and(|word| word >> (at % 64) & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_log() {
        let log = [1u64 << 63, 1];
        let set: Vec<u64> = (0..200).filter(|at| is_set(&log, *at)).collect();
        assert_eq!(set, [63, 64]);
        assert!(!is_set(&log, 0u64.wrapping_sub(1)));
    }
}
