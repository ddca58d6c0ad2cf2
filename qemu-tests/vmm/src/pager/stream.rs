//! The rest of a snapshot, which nobody asked for, comes in the background.

use anyhow::Result;

use super::{Pager, State};

/// Pages that come together.
const CHUNK: usize = 16;
/// From the load of a snapshot to its first chunk.
const DELAY_NS: u64 = 20_000_000;

/// How fast it comes, and when its next chunk does.
pub(super) struct Stream {
    interval_ns: Option<u64>,
    due_ns: u64,
}

impl Stream {
    /// Not before [`start`](Self::start); at 0 MiB per second nothing ever comes.
    pub(super) fn new(mib_s: u32) -> Stream {
        let chunks_s = u64::from(mib_s) * 256 / CHUNK as u64;
        Stream { interval_ns: 1_000_000_000u64.checked_div(chunks_s), due_ns: 0 }
    }

    /// A snapshot was loaded.
    pub(super) fn start(&mut self, now_ns: u64) {
        self.due_ns = now_ns + DELAY_NS;
    }
}

impl Pager {
    /// Delivers a chunk if it is time; when the next one is due, if there is more.
    pub(super) fn stream(&self, state: &mut State, now_ns: u64) -> Result<Option<u64>> {
        let Some(interval_ns) = state.stream.interval_ns else { return Ok(None) };
        if now_ns >= state.stream.due_ns {
            let frames = state.lazy.as_mut().map(|lazy| lazy.next(CHUNK)).unwrap_or_default();
            if frames.is_empty() {
                return Ok(None);
            }
            self.deliver(state, &frames)?;
            // Not faster later because it was late once.
            state.stream.due_ns = now_ns + interval_ns;
        }
        Ok(state.lazy.is_some().then_some(state.stream.due_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(Stream::new(0).interval_ns, None);
        assert_eq!(Stream::new(1).interval_ns, Some(62_500_000));
        assert_eq!(Stream::new(100).interval_ns, Some(625_000));
    }
}
