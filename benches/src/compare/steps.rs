//! The single operations of a workload, and which keys they take.

use rand::RngExt as _;
use rand::rngs::SmallRng;

use crate::Result;
use crate::compare::data::{self, Order, Values, Zipfian};
use crate::compare::options::Spec;
use crate::compare::workloads::{Blend, Choice, Kind, Workload};
use crate::peers::{Direction, Key, Session};

/// Puts in a batch of `fillbatch`.
pub const BATCH: u64 = 100;
/// Entries after a seek.
pub const SEEK_ENTRIES: u64 = 50;
/// Most entries of a scan of `ycsb-e`.
const SHORT_SCAN_MAX: u64 = 100;

/// What one operation did.
#[derive(Copy, Clone)]
pub struct Step {
    /// What the workload counts.
    pub units: u64,
    /// Gets that found something.
    pub hits: u64,
    /// Gets.
    pub reads: u64,
}

impl Step {
    const PUT: Self = Self { units: 1, hits: 0, reads: 0 };

    fn get(hit: bool) -> Self {
        Self { units: 1, hits: u64::from(hit), reads: 1 }
    }

    fn counting(units: u64) -> Self {
        Self { units, hits: 0, reads: 0 }
    }
}

/// What one thread makes its operations of.
pub struct Steps<'a> {
    spec: &'a Spec,
    workload: &'a Workload,
    /// Its number.
    pub thread: u64,
    random: SmallRng,
    values: Values,
    zipfian: Zipfian,
    /// New keys that this thread has put.
    inserted: u64,
    /// A batch: keys, and values one after the other.
    keys: Vec<Key>,
    bytes: Vec<u8>,
}

impl<'a> Steps<'a> {
    /// The operations of one thread.
    pub fn new(
        spec: &'a Spec,
        workload: &'a Workload,
        thread: usize,
        values: Values,
        zipfian: Zipfian,
    ) -> Self {
        let random = data::random(spec.round, thread, 2);
        let (keys, bytes, thread) = (Vec::new(), Vec::new(), thread as u64);
        Self { spec, workload, thread, random, values, zipfian, inserted: 0, keys, bytes }
    }

    /// One operation.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    #[inline]
    pub fn step(&mut self, session: &mut dyn Session) -> Result<Step> {
        match self.workload.kind {
            Kind::Fill(order) => {
                let key = data::key(self.next_new(order, 0), order);
                session.put(&key, self.values.next(&mut self.random))?;
                Ok(Step::PUT)
            }
            Kind::FillBatch => self.batch(session),
            Kind::Overwrite => {
                let key = self.existing(Choice::Uniform);
                session.put(&key, self.values.next(&mut self.random))?;
                Ok(Step::PUT)
            }
            Kind::Read(choice) => Ok(Step::get(session.get(&self.existing(choice))?)),
            Kind::Seek => {
                let key = self.existing(Choice::Uniform);
                let seen = session.scan(Some(&key), Direction::Forward, SEEK_ENTRIES)?;
                Ok(Step::counting(seen))
            }
            Kind::Scan(direction) => Ok(Step::counting(session.scan(None, direction, u64::MAX)?)),
            Kind::Blend(blend) => self.blended(session, &blend),
            kind => Err(format!("{kind:?} is not made of operations").into()),
        }
    }

    fn blended(&mut self, session: &mut dyn Session, blend: &Blend) -> Result<Step> {
        let mut draw = self.random.random_range(0..100);
        let mut falls_below = |share: u32| {
            let falls = draw < share;
            draw = draw.wrapping_sub(share);
            falls
        };
        if falls_below(blend.update) {
            let key = self.existing(blend.choice);
            session.put(&key, self.values.next(&mut self.random))?;
            Ok(Step::PUT)
        } else if falls_below(blend.insert) {
            let key = data::key(self.next_new(Order::Spread, self.spec.entries), Order::Spread);
            session.put(&key, self.values.next(&mut self.random))?;
            Ok(Step::PUT)
        } else if falls_below(blend.scan) {
            let (key, length) =
                (self.existing(blend.choice), self.random.random_range(1..=SHORT_SCAN_MAX));
            let seen = session.scan(Some(&key), Direction::Forward, length)?;
            Ok(Step::get(seen > 0))
        } else if falls_below(blend.modify) {
            let key = self.existing(blend.choice);
            let hit = session.get(&key)?;
            session.put(&key, self.values.next(&mut self.random))?;
            Ok(Step::get(hit))
        } else {
            Ok(Step::get(session.get(&self.existing(blend.choice))?))
        }
    }

    /// The number of a key that nobody has put: threads take turns, or a range each when keys are
    /// to ascend.
    fn next_new(&mut self, order: Order, first: u64) -> u64 {
        let number = self.inserted;
        self.inserted += 1;
        match order {
            Order::Spread => first + number * self.spec.threads as u64 + self.thread,
            Order::Ascending => self.thread << 40 | number,
        }
    }

    /// A key that was loaded (or surely was not).
    fn existing(&mut self, choice: Choice) -> Key {
        let entries = self.spec.entries;
        let number = match choice {
            Choice::Uniform => self.random.random_range(0..entries),
            Choice::Zipfian => self.zipfian.rank(&mut self.random),
            Choice::Missing => self.random.random_range(entries..2 * entries),
            // Its own inserts first, then the load, backwards.
            Choice::Latest => {
                let rank = self.zipfian.rank(&mut self.random);
                match self.inserted.checked_sub(rank + 1) {
                    Some(own) => entries + own * self.spec.threads as u64 + self.thread,
                    None => entries - 1 - (rank - self.inserted).min(entries - 1),
                }
            }
        };
        data::key(number, Order::Spread)
    }

    fn batch(&mut self, session: &mut dyn Session) -> Result<Step> {
        self.keys.clear();
        self.bytes.resize(BATCH as usize * self.spec.value_bytes, 0);
        for _ in 0..BATCH {
            let number = self.next_new(Order::Spread, 0);
            self.keys.push(data::key(number, Order::Spread));
        }
        for value in self.bytes.chunks_exact_mut(self.spec.value_bytes) {
            self.values.fill(&mut self.random, value);
        }
        let values = self.bytes.chunks_exact(self.spec.value_bytes);
        let entries: Vec<(Key, &[u8])> = self.keys.iter().copied().zip(values).collect();
        session.put_batch(&entries)?;
        Ok(Step::counting(BATCH))
    }
}
