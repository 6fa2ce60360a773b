//! What ten million revocations cost: memory for each, look-ups, how long a reader is kept waiting
//! while they come in, and a start from a store with a million.
//!
//! `cargo bench --bench revocation`, or with `-- 1000000` for as many. Wall-clock time, so that
//! waiting shows: on a machine that does nothing else. A thread that is taken off its core waits for
//! the others' time slices; how long is measured beside, by a thread that looks nothing up.
#![allow(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a tool that may fail loudly"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use portcullis::metrics::Metrics;
use portcullis::revocation::{
    Change, Known, Plane, Revocation, RevocationConfig, Revocations, Target,
};
use portcullis::schema::Compile;

const ISSUER: &str = "https://login.example.test/realms/main";
/// Entries that are looked up, so many times over.
const SAMPLE: u64 = 200_000;
const ROUNDS: u32 = 5;
/// Entries of one call.
const BATCH: u64 = 500;

fn main() {
    let entries = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(10_000_000);
    memory_and_time(entries);
    start_from_a_store(entries / 10);
}

fn plane(entries: u64, store: Option<&Path>) -> Arc<Revocations> {
    let config = RevocationConfig {
        max_entries: entries + BATCH,
        store: store.map(Into::into),
        ..RevocationConfig::default()
    };
    let file = Path::new("/gateway.yaml");
    let mut cx = Compile::new(file, Arc::<Metrics>::default());
    let (issuers, names) = (Default::default(), Default::default());
    let known = Known {
        issuers: &issuers,
        issuer_names: &names,
        listener_names: &names,
    };
    config.compile(None, &known, &mut cx).unwrap()
}

/// Spread over all numbers, the same in every run.
fn mixed(number: u64) -> u64 {
    let x = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn target(number: u64) -> Target {
    Target::Token {
        issuer: ISSUER.to_owned(),
        token_id: format!("{:016x}-{number:012x}", mixed(number + 1)),
    }
}

fn fill(plane: &Plane, from: u64, to: u64, now: SystemTime) {
    let source: Arc<str> = "bench".into();
    let mut next = from;
    while next < to {
        let end = (next + BATCH).min(to);
        let changes = (next..end).map(|number| {
            Change::Revoke(Revocation {
                target: target(number),
                before: None,
                minimum: None,
                until: Some(now + Duration::from_secs(3600)),
                source: Arc::clone(&source),
                reason: None,
            })
        });
        let results = plane.apply(changes.collect(), now).kept_here();
        assert!(results.iter().all(|result| *result == Ok(true)));
        next = end;
    }
}

fn memory_and_time(entries: u64) {
    let now = SystemTime::now();
    let step = (entries / SAMPLE).max(1);
    let there: Vec<Target> = (0..SAMPLE)
        .map(|n| target(mixed(n) % SAMPLE * step))
        .collect();
    let absent: Vec<Target> = (0..SAMPLE).map(|n| target(entries + n)).collect();
    let revocations = plane(entries, None);
    let plane = revocations.plane();

    let before = resident();
    let done = AtomicBool::new(false);
    let (took, reader, idle) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            longest(&done, |turn| {
                let target = &there[turn % there.len()];
                black_box(plane.has_entry(target, now));
            })
        });
        let idle = scope.spawn(|| {
            longest(&done, |turn| {
                black_box(turn);
            })
        });
        let start = Instant::now();
        fill(plane, 0, entries, now);
        let took = start.elapsed();
        done.store(true, Ordering::Relaxed);
        (took, reader.join().unwrap(), idle.join().unwrap())
    });
    let grown = resident().saturating_sub(before);
    println!("entries                                {entries}");
    println!(
        "memory                                 {:.0} MB, {:.1} bytes for each (in tables at most {})",
        grown as f64 / 1e6,
        grown as f64 / entries as f64,
        portcullis::revocation::MAX_BYTES_PER_ENTRY,
    );
    println!(
        "taken, in batches of {BATCH}               {:.0} a second",
        entries as f64 / took.as_secs_f64()
    );
    println!("one look-up, while they came in        {reader}");
    println!("no look-up, meanwhile                  {idle}");

    for (name, targets) in [
        ("of one that is there", &there),
        ("of one that is not", &absent),
    ] {
        let time = per_look_up(plane, targets, now);
        println!("look-up {name:<23}        {time:.0} ns");
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| per_look_up(plane, targets, now));
            let one = per_look_up(plane, targets, now);
            (one + other.join().unwrap()) / 2.0
        });
        println!("  by two threads at once               {both:.0} ns each");
    }
    let found = there.iter().filter(|it| plane.has_entry(it, now)).count();
    let wrong = absent.iter().filter(|it| plane.has_entry(it, now)).count();
    println!("found, of {SAMPLE} that are there        {found}");
    println!("found, of {SAMPLE} that are not          {wrong}");
}

/// Nanoseconds for one, hashing the names included, over more than the caches hold.
fn per_look_up(plane: &Plane, targets: &[Target], now: SystemTime) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for target in targets {
            black_box(plane.has_entry(black_box(target), now));
        }
        best = best.min(start.elapsed().as_nanos() as f64 / targets.len() as f64);
    }
    best
}

/// How long single calls take.
struct Spread {
    median: Duration,
    late: Duration,
    longest: Duration,
    over: usize,
    calls: usize,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "median {:?}, 99.99 % within {:?}, longest {:?}, {} of {} over 100 µs",
            self.median, self.late, self.longest, self.over, self.calls
        )
    }
}

fn longest(done: &AtomicBool, mut call: impl FnMut(usize)) -> Spread {
    let mut times = Vec::with_capacity(1 << 22);
    let mut turn: usize = 0;
    let (mut longest, mut over) = (Duration::ZERO, 0);
    while !done.load(Ordering::Relaxed) {
        let start = Instant::now();
        call(turn);
        let took = start.elapsed();
        longest = longest.max(took);
        over += usize::from(took > Duration::from_micros(100));
        if times.len() < times.capacity() {
            times.push(took);
        }
        turn += 1;
    }
    times.sort_unstable();
    let at = |part: f64| times[(times.len() as f64 * part) as usize];
    Spread {
        median: at(0.5),
        late: at(0.9999),
        longest,
        over,
        calls: turn,
    }
}

fn start_from_a_store(entries: u64) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("revoked");
    let now = SystemTime::now();
    {
        let revocations = plane(entries, Some(&store));
        revocations.begin().unwrap();
        let start = Instant::now();
        fill(revocations.plane(), 0, entries, now);
        println!(
            "taken and on disk, by one at a time    {:.0} a second in batches of {BATCH}",
            entries as f64 / start.elapsed().as_secs_f64()
        );
    }
    let revocations = plane(entries, Some(&store));
    let start = Instant::now();
    revocations.begin().unwrap();
    println!(
        "start from a store of {entries:<9}        {:.2} s, {:.0} MB of file",
        start.elapsed().as_secs_f64(),
        store.metadata().unwrap().len() as f64 / 1e6
    );
    assert!(revocations.plane().has_entry(&target(entries - 1), now));
}

/// Memory of the process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
