//! Which page is delivered when: pure, told the time by its caller.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

use ve_apf_testdev::Order;

use super::policy::Policy;

/// Pages that are asked for and not delivered yet.
///
/// A request fixes a *time* at which one page of its policy is delivered; the policy's order says *which*. So the order
/// is what was asked for, whatever the latencies drawn.
#[derive(Debug, Default)]
pub struct Schedule {
    queues: BTreeMap<u32, Queue>,
    events: BinaryHeap<Reverse<Event>>,
    /// Queue of each pending page.
    pending: HashMap<u64, u32>,
    next_seq: u64,
    seed: u64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<u64>,
    /// Held for a burst.
    held: Vec<u64>,
    /// Counts bursts, so that the hold time of an old one does not cut a new one short.
    burst: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at_ns: u64,
    seq: u64,
    queue: u32,
    what: What,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    One(u8),
    Batch(Vec<u64>),
    HoldEnds { burst: u64, latency_ns: u64 },
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Will be delivered.
    New,
    /// Was asked for before and is still pending.
    Duplicate,
}

impl Schedule {
    /// Random latencies and orders follow from `seed`.
    pub fn new(seed: u64) -> Schedule {
        Schedule { seed, ..Schedule::default() }
    }

    /// Number of pages pending.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Nothing pending.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Somebody waits for `gfn` since `now_ns`.
    pub fn request(&mut self, now_ns: u64, gfn: u64, policy: &Policy) -> Request {
        if self.pending.contains_key(&gfn) {
            return Request::Duplicate;
        }
        self.pending.insert(gfn, policy.id);
        let args = &policy.args;
        let latency_ns = 1000 * self.draw(args.min_us.into(), args.max_us.into());
        if args.burst > 1 && !args.never {
            self.hold(now_ns, gfn, policy, latency_ns);
            return Request::New;
        }
        self.queues.entry(policy.id).or_default().waiting.push_back(gfn);
        if !args.never {
            self.push(now_ns + latency_ns, policy.id, What::One(args.order as u8));
        }
        Request::New
    }

    fn hold(&mut self, now_ns: u64, gfn: u64, policy: &Policy, latency_ns: u64) {
        let queue = self.queues.entry(policy.id).or_default();
        queue.held.push(gfn);
        let burst = queue.burst;
        if queue.held.len() >= policy.args.burst as usize {
            queue.burst += 1;
            let batch = std::mem::take(&mut queue.held);
            self.push(now_ns + latency_ns, policy.id, What::Batch(batch));
        } else if queue.held.len() == 1 {
            let ends = now_ns + 1000 * u64::from(policy.args.hold_us);
            self.push(ends, policy.id, What::HoldEnds { burst, latency_ns });
        }
    }

    /// The pages pending.
    pub fn pages(&self) -> Vec<u64> {
        self.pending.keys().copied().collect()
    }

    /// Forgets all requests.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.queues.clear();
        self.events.clear();
    }

    /// When [`Schedule::due`] has something to do next.
    pub fn next_ns(&self) -> Option<u64> {
        self.events.peek().map(|Reverse(event)| event.at_ns)
    }

    /// Takes what is to be delivered now: each inner list together. The number is the time it was due.
    pub fn due(&mut self, now_ns: u64) -> Vec<(u64, Vec<u64>)> {
        let mut out = Vec::new();
        while self.next_ns().is_some_and(|at| at <= now_ns) {
            let Some(Reverse(event)) = self.events.pop() else { break };
            let batch = match event.what {
                What::One(order) => self.pick(event.queue, order).into_iter().collect(),
                What::Batch(batch) => batch,
                What::HoldEnds { burst, latency_ns } => {
                    if let Some(queue) =
                        self.queues.get_mut(&event.queue).filter(|queue| queue.burst == burst)
                    {
                        queue.burst += 1;
                        let batch = std::mem::take(&mut queue.held);
                        self.push(event.at_ns + latency_ns, event.queue, What::Batch(batch));
                    }
                    continue;
                }
            };
            let batch: Vec<u64> =
                batch.into_iter().filter(|gfn| self.pending.remove(gfn).is_some()).collect();
            if !batch.is_empty() {
                out.push((event.at_ns, batch));
            }
        }
        if self.pending.is_empty() {
            // Policies come and go; their queues need not stay.
            self.clear();
        }
        out
    }

    /// Takes a page out, because it is delivered otherwise.
    pub fn take(&mut self, gfn: u64) -> bool {
        let Some(id) = self.pending.remove(&gfn) else { return false };
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.waiting.retain(|waiting| *waiting != gfn);
            queue.held.retain(|held| *held != gfn);
        }
        true
    }

    fn pick(&mut self, id: u32, order: u8) -> Option<u64> {
        let len = self.queues.get(&id)?.waiting.len();
        let index = match order {
            o if o == Order::Fifo as u8 => 0,
            o if o == Order::Lifo as u8 => len.checked_sub(1)?,
            _ => usize::try_from(self.draw(0, (len as u64).checked_sub(1)?)).ok()?,
        };
        self.queues.get_mut(&id)?.waiting.remove(index)
    }

    fn push(&mut self, at_ns: u64, queue: u32, what: What) {
        self.next_seq += 1;
        self.events.push(Reverse(Event { at_ns, seq: self.next_seq, queue, what }));
    }

    /// Uniform in `min..=max` (xorshift; tests need variety, not secrecy).
    fn draw(&mut self, min: u64, max: u64) -> u64 {
        self.seed |= 1;
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        min + (self.seed >> 16) % (max - min + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ve_apf_testdev::PolicyArgs;

    fn policy(args: PolicyArgs) -> Policy {
        Policy { id: 1, args }
    }

    fn all(schedule: &mut Schedule, now: u64) -> Vec<u64> {
        schedule.due(now).into_iter().flat_map(|(_, batch)| batch).collect()
    }

    #[test]
    fn fixed_latency_in_order() {
        let mut s = Schedule::new(1);
        let p = policy(PolicyArgs::fixed(20));
        assert_eq!(s.request(0, 7, &p), Request::New);
        assert_eq!(s.request(5_000, 7, &p), Request::Duplicate);
        assert_eq!(s.request(5_000, 8, &p), Request::New);
        assert_eq!(s.next_ns(), Some(20_000));
        assert!(all(&mut s, 19_999).is_empty());
        assert_eq!(all(&mut s, 20_000), [7]);
        assert_eq!(all(&mut s, 30_000), [8]);
        assert!(s.is_empty() && s.next_ns().is_none());
    }

    #[test]
    fn lifo_and_random() {
        let mut s = Schedule::new(1);
        let lifo = policy(PolicyArgs { order: Order::Lifo, ..PolicyArgs::fixed(10) });
        for gfn in 0..3 {
            s.request(0, gfn, &lifo);
        }
        assert_eq!(all(&mut s, 10_000), [2, 1, 0]);
        let random = policy(PolicyArgs {
            order: Order::Random,
            min_us: 1,
            max_us: 50,
            ..PolicyArgs::fixed(1)
        });
        for gfn in 0..100 {
            s.request(0, gfn, &random);
        }
        assert!(all(&mut s, 999).is_empty());
        let mut got = all(&mut s, 50_000);
        assert_ne!(got, (0..100).collect::<Vec<_>>());
        got.sort_unstable();
        assert_eq!(got, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn bursts_fill_or_time_out() {
        let mut s = Schedule::new(1);
        let p = policy(PolicyArgs { burst: 3, hold_us: 100, ..PolicyArgs::fixed(5) });
        s.request(0, 1, &p);
        s.request(1_000, 2, &p);
        assert!(all(&mut s, 50_000).is_empty());
        s.request(50_000, 3, &p);
        // The burst goes as one, 5 us after it was full; its own hold time is void.
        assert_eq!(s.due(55_000), [(55_000, vec![1, 2, 3])]);
        s.request(60_000, 4, &p);
        assert!(s.due(159_999).is_empty());
        assert!(s.due(160_000).is_empty());
        assert_eq!(s.due(165_000), [(165_000, vec![4])]);
    }

    #[test]
    fn never_until_taken() {
        let mut s = Schedule::new(1);
        let p = policy(PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
        s.request(0, 1, &p);
        assert_eq!(s.next_ns(), None);
        assert!(all(&mut s, u64::MAX).is_empty());
        assert_eq!(s.len(), 1);
        assert!(s.take(1));
        assert!(!s.take(1));
        assert!(s.is_empty());
    }

    #[test]
    fn taken_out_of_a_burst() {
        let mut s = Schedule::new(1);
        let p = policy(PolicyArgs { burst: 2, hold_us: 100, ..PolicyArgs::fixed(5) });
        s.request(0, 1, &p);
        s.request(0, 2, &p);
        assert!(s.take(1));
        assert_eq!(all(&mut s, 5_000), [2]);
    }
}
