//! Numbers that every thread counts for itself, summed when somebody asks for them.
//!
//! A number is a place in a table that each thread has one of, so counting is a load and a store in
//! memory that no other thread writes: no lock, no atomic read-modify-write, no cache line that goes
//! from core to core. What a thread has counted outlives it.

use std::fmt::Error;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Places in a chunk, and chunks in a table. A chunk is made when its thread first counts in it.
const CHUNK: usize = 2048;
const CHUNKS: usize = 1024;

/// The next free place. Places are never given back: names come from the configuration, and two
/// million are enough for very many of them.
static NEXT: AtomicU32 = AtomicU32::new(0);

static THREADS: Mutex<Threads> = Mutex::new(Threads {
    running: Vec::new(),
    past: None,
});

thread_local! {
    static MINE: Mine = Mine::begin();
}

struct Threads {
    running: Vec<Arc<Table>>,
    /// What threads that have ended counted.
    past: Option<Arc<Table>>,
}

impl Threads {
    fn all(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.running.iter().chain(&self.past)
    }

    fn past(&mut self) -> &Table {
        self.past.get_or_insert_with(Arc::default)
    }
}

fn threads() -> MutexGuard<'static, Threads> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

type Chunk = Box<[AtomicU64]>;

struct Table(Box<[OnceLock<Chunk>]>);

impl Default for Table {
    fn default() -> Self {
        Self((0..CHUNKS).map(|_| OnceLock::new()).collect())
    }
}

impl Table {
    /// Only called by the table's own thread, or under the lock of [`THREADS`] for the past.
    fn add(&self, place: usize, more: u64) {
        let Some(chunk) = self.0.get(place / CHUNK) else {
            return;
        };
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(0)).collect());
        if let Some(number) = chunk.get(place % CHUNK) {
            // Nobody else writes here, so this loses nothing.
            number.store(
                number.load(Ordering::Relaxed).wrapping_add(more),
                Ordering::Relaxed,
            );
        }
    }

    fn get(&self, place: usize) -> u64 {
        self.0
            .get(place / CHUNK)
            .and_then(OnceLock::get)
            .and_then(|chunk| chunk.get(place % CHUNK))
            .map_or(0, |number| number.load(Ordering::Relaxed))
    }
}

/// The calling thread's table.
struct Mine(Arc<Table>);

impl Mine {
    fn begin() -> Self {
        let table = Arc::<Table>::default();
        threads().running.push(Arc::clone(&table));
        Self(table)
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let mut threads = threads();
        threads.running.retain(|table| !Arc::ptr_eq(table, &self.0));
        let past = threads.past();
        for (index, chunk) in self.0.0.iter().enumerate() {
            for (place, number) in chunk.get().into_iter().flatten().enumerate() {
                let number = number.load(Ordering::Relaxed);
                if number != 0 {
                    past.add(index * CHUNK + place, number);
                }
            }
        }
    }
}

/// The first of so many new places, next to each other.
fn places(count: u32) -> u32 {
    let first = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        next.checked_add(count)
    });
    // Beyond the table nothing is counted; see `Table::add`.
    first.unwrap_or(u32::MAX)
}

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

fn with_mine(count: impl Fn(&Table)) {
    // A thread that is ending has no table any more.
    if MINE.try_with(|mine| count(&mine.0)).is_err() {
        count(threads().past());
    }
}

fn sum(place: u32) -> u64 {
    let numbers = |table: &Arc<Table>| table.get(index(place));
    threads()
        .all()
        .map(numbers)
        .fold(0, |sum, number| sum.wrapping_add(number))
}

/// A number that only grows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count(u32);

impl Default for Count {
    fn default() -> Self {
        Self(places(1))
    }
}

impl Count {
    /// One more.
    pub(super) fn inc(self) {
        self.inc_by(1);
    }

    /// So many more.
    pub(super) fn inc_by(self, more: u64) {
        with_mine(|mine| mine.add(index(self.0), more));
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        encoder.encode_counter::<NoLabelSet, _, u64>(&sum(self.0), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A number that goes up and down. One thread may count up and another down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level(u32);

impl Default for Level {
    fn default() -> Self {
        Self(places(1))
    }
}

impl Level {
    /// So many more, or fewer.
    pub(super) fn change(self, by: i64) {
        with_mine(|mine| mine.add(index(self.0), by.cast_unsigned()));
    }

    /// How many it is.
    pub(super) fn get(self) -> i64 {
        sum(self.0).cast_signed()
    }
}

impl TypedMetric for Level {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Level {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        encoder.encode_gauge(&self.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// How many spans of time were how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// The place of the sum in nanoseconds; behind it those of the buckets.
    sum: u32,
    /// Upper bounds of the buckets but the last, which has none, in nanoseconds.
    bounds: &'static [u64],
}

impl Times {
    /// Bounds in nanoseconds, ascending.
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        let buckets = u32::try_from(bounds.len()).unwrap_or(u32::MAX);
        Self {
            sum: places(buckets.saturating_add(2)),
            bounds,
        }
    }

    /// Counts one.
    pub(super) fn observe(self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().take_while(|&&bound| nanos > bound);
        let bucket = bucket.count();
        with_mine(|mine| {
            mine.add(index(self.sum), nanos);
            mine.add(index(self.sum) + 1 + bucket, 1);
        });
    }
}

impl TypedMetric for Times {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let seconds = |nanos| Duration::from_nanos(nanos).as_secs_f64();
        let bounds = self.bounds.iter().map(|&nanos| seconds(nanos));
        let buckets: Vec<(f64, u64)> = (self.sum.saturating_add(1)..)
            .zip(bounds.chain([f64::INFINITY]))
            .map(|(place, bound)| (bound, sum(place)))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(seconds(sum(self.sum)), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_is_summed_and_outlives_them() {
        let (count, level) = (Count::default(), Level::default());
        count.inc();
        level.change(-3);
        let begun = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        count.inc();
                    }
                    level.change(2);
                    begun.wait();
                    begun.wait();
                });
            }
            begun.wait();
            assert_eq!((sum(count.0), level.get()), (2001, 1), "while they run");
            begun.wait();
        });
        assert_eq!(
            (sum(count.0), level.get()),
            (2001, 1),
            "when they have ended"
        );
    }

    #[test]
    fn a_full_table_counts_nothing_and_harms_nothing() {
        let beyond = Count(u32::try_from(CHUNK * CHUNKS).unwrap());
        beyond.inc();
        assert_eq!(sum(beyond.0), 0);
        Count(u32::MAX).inc();
        assert_eq!(sum(u32::MAX), 0);
    }

    #[test]
    fn a_span_is_counted_in_the_first_bucket_that_holds_it() {
        let times = Times::new(&[10, 20]);
        for nanos in [0, 10, 11, 20, 21, 1_000_000_000] {
            times.observe(Duration::from_nanos(nanos));
        }
        let buckets: Vec<u64> = (1..=3).map(|bucket| sum(times.sum + bucket)).collect();
        assert_eq!(buckets, [2, 2, 2]);
        assert_eq!(sum(times.sum), 1_000_000_062);
    }
}
