//! What is shipped is what the ledger holds: everything, in order, whatever happens.

use std::fs;
use std::io::Read;

use flate2::read::GzDecoder;
use proptest::prelude::*;

use super::chunk::Chunk;
use super::*;
use crate::audit::ledger::{Found, KeepConfig, LedgerConfig, Pen, Position, Tail, verify};
use crate::audit::sink::{AuditSink, LeftOut};
use crate::schema::{Size, Span};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(folder: &Path) -> LedgerConfig {
    LedgerConfig {
        folder: folder.join("records"),
        key: None,
        seal_every: Span::seconds(1),
        sync: Span::seconds(1),
        // Far too small for the configuration, so that segments change all the time.
        segment: Size::bytes(2_000),
        keep: KeepConfig::default(),
    }
}

fn record(number: u64) -> String {
    format!(
        "{{\"version\":2,\"time\":\"2026-01-15T09:30:00.123Z\",\"request_id\":\"r{number}\"}}\n"
    )
}

fn batch(numbers: std::ops::RangeInclusive<u64>) -> String {
    numbers.map(record).collect()
}

fn ship(to: Destination, change: impl FnOnce(&mut Ship)) -> Ships {
    let mut ship = Ship {
        name: "copy".into(),
        mark: ContentDigest::of(b"1"),
        destination: to,
        format: ShipFormat::Portcullis,
        begin: ShipBegin::Oldest,
        size: 1_000,
        records: 1000,
        wait: Duration::from_millis(1),
        delays: (Duration::from_millis(1), Duration::from_millis(20)),
        metrics: Arc::default(),
    };
    change(&mut ship);
    Ships::from([("copy".to_owned(), Arc::new(ship))])
}

fn labels() -> Labels {
    Labels::new("test", [])
}

fn copied(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn read(tail: &mut Tail, head: &Head) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        match tail.next(head).unwrap() {
            Found::Record => found.push(String::from_utf8(tail.line().to_vec()).unwrap()),
            Found::End => return found,
            Found::Missing(count) => found.push(format!("missing {count}")),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whoever_reads_along_gets_each_record_once_wherever_it_stops_and_goes_on(
        steps in prop::collection::vec((1_u64..30, any::<bool>(), any::<bool>(), any::<bool>()), 1..40)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let mut pen = Pen::new(&config, &Ships::new()).unwrap();
        let mut tail = Tail::open(config.folder.clone(), None, &pen.head());
        let (mut next, mut got) = (1, Vec::new());
        for (count, reads, reopens, restarts) in steps {
            pen.write(batch(next..=next + count - 1).as_bytes()).unwrap();
            pen.refresh().unwrap();
            next += count;
            if restarts {
                // Another process.
                drop(pen);
                pen = Pen::new(&config, &Ships::new()).unwrap();
            }
            if reads {
                got.extend(read(&mut tail, &pen.head()));
            }
            if reopens {
                let at = tail.position().clone();
                let text = serde_json::to_vec(&at).unwrap();
                let at: Position = serde_json::from_slice(&text).unwrap();
                tail = Tail::open(config.folder.clone(), Some(at), &pen.head());
            }
        }
        got.extend(read(&mut tail, &pen.head()));
        prop_assert_eq!(got.concat(), batch(1..=next - 1));
    }
}

#[test]
fn a_cursor_that_fits_no_line_is_found_again_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut pen = Pen::new(&config, &Ships::new()).unwrap();
    pen.write(batch(1..=8).as_bytes()).unwrap();
    let head = pen.head();
    let mut tail = Tail::open(config.folder.clone(), None, &head);
    for _ in 0..5 {
        assert_eq!(tail.next(&head).unwrap(), Found::Record);
    }
    for offset in [0, 1, tail.position().offset - 1, tail.position().offset] {
        let at = Position {
            offset,
            ..tail.position().clone()
        };
        let mut tail = Tail::open(config.folder.clone(), Some(at), &head);
        assert_eq!(read(&mut tail, &head).concat(), batch(6..=8), "{offset}");
    }
    // One that is behind the end: a crash of the machine took what was shipped already.
    let at = Position {
        record: 20,
        ..Position::of(&head)
    };
    let mut tail = Tail::open(config.folder.clone(), Some(at), &head);
    pen.write(batch(9..=10).as_bytes()).unwrap();
    assert_eq!(read(&mut tail, &pen.head()).concat(), batch(9..=10));
}

#[test]
fn not_a_byte_is_read_that_could_yet_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut pen = Pen::new(&config, &Ships::new()).unwrap();
    pen.write(batch(1..=2).as_bytes()).unwrap();
    let head = pen.head();
    pen.write(batch(3..=4).as_bytes()).unwrap();
    let mut tail = Tail::open(config.folder.clone(), None, &head);
    assert_eq!(read(&mut tail, &head).concat(), batch(1..=2));
    assert_eq!(read(&mut tail, &pen.head()).concat(), batch(3..=4));
}

#[test]
fn what_a_ledger_holds_is_shipped_over_stops_and_starts_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (config, copy) = (config(folder.path()), folder.path().join("copy.jsonl"));
    for round in 0..6_u64 {
        let ships = ship(Destination::File(copy.clone()), |_| {});
        let mut pen = Pen::new(&config, &ships).unwrap();
        pen.adopt(&ships, &labels());
        for number in 0..20 {
            let begin = round * 200 + number * 10 + 1;
            pen.write(batch(begin..=begin + 9).as_bytes()).unwrap();
        }
        if round % 2 == 0 {
            // An orderly end ships what is left; in other rounds the next start does.
            assert!(pen.fleet().finish(PATIENCE).is_empty());
            assert_eq!(copied(&copy), batch(1..=(round + 1) * 200));
        }
    }
    let ships = ship(Destination::File(copy.clone()), |_| {});
    let pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    eventually("the rest", || copied(&copy) == batch(1..=1200));
}

#[test]
fn a_changed_sink_goes_on_where_the_one_before_was() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let ships = ship(Destination::File(one.clone()), |_| {});
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    pen.write(batch(1..=50).as_bytes()).unwrap();
    eventually("the first half", || copied(&one) == batch(1..=50));
    let ships = ship(Destination::File(two.clone()), |ship| {
        ship.mark = ContentDigest::of(b"2");
    });
    pen.adopt(&ships, &labels());
    pen.write(batch(51..=100).as_bytes()).unwrap();
    eventually("the second half", || copied(&two) == batch(51..=100));
    // One that is configured no more gets nothing more.
    pen.adopt(&Ships::new(), &labels());
    pen.write(batch(101..=110).as_bytes()).unwrap();
    assert!(pen.fleet().status().is_empty());
    pen.adopt(&ships, &labels());
    eventually("what came between", || copied(&two) == batch(51..=110));
    assert_eq!(copied(&one), batch(1..=50));
}

#[test]
fn a_new_sink_begins_with_the_oldest_record_or_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut pen = Pen::new(&config, &Ships::new()).unwrap();
    pen.write(batch(1..=50).as_bytes()).unwrap();
    for (begin, expected) in [
        (ShipBegin::Oldest, batch(1..=60)),
        (ShipBegin::Newest, batch(61..=70)),
    ] {
        let copy = folder.path().join(format!("{begin:?}"));
        let ships = ship(Destination::File(copy.clone()), |ship| ship.begin = begin);
        let _ = fs::remove_dir_all(config.folder.join("ship"));
        pen.adopt(&ships, &labels());
        eventually("its beginning", || {
            begin == ShipBegin::Oldest || pen.fleet().status()["copy"].shipped == 60
        });
        let from = pen.head().records + 1;
        pen.write(batch(from..=from + 9).as_bytes()).unwrap();
        eventually("the copy", || copied(&copy) == expected);
        pen.adopt(&Ships::new(), &labels());
    }
}

#[test]
fn age_removes_nothing_that_was_not_shipped_and_the_bound_of_the_disk_says_what_it_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.keep.time = Some(Span::millis(0));
    // A sink that takes nothing: there is a folder in its place.
    let copy = folder.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let ships = ship(Destination::File(copy.clone()), |_| {});
    let segments = |config: &LedgerConfig| {
        let files = fs::read_dir(&config.folder).unwrap();
        files
            .filter(|file| {
                let name = file.as_ref().unwrap().file_name();
                name.to_str().unwrap().starts_with("segment-")
            })
            .count()
    };
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    for number in 0..20 {
        pen.write(batch(number * 10 + 1..=number * 10 + 10).as_bytes())
            .unwrap();
        pen.refresh().unwrap();
    }
    let before = segments(&config);
    assert!(before >= 5, "{before}");
    eventually("a failure", || pen.fleet().status()["copy"].error.is_some());
    drop(pen);
    // Now with a bound of the disk.
    config.keep = KeepConfig {
        size: Some(Size::bytes(7_000)),
        time: None,
    };
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    // It has begun to read: what goes before that is none of its own.
    eventually("a failure", || pen.fleet().status()["copy"].error.is_some());
    pen.write(batch(201..=240).as_bytes()).unwrap();
    pen.write(batch(241..=250).as_bytes()).unwrap();
    pen.refresh().unwrap();
    assert!(segments(&config) < before);
    pen.rest();
    let report = verify(&config.folder, &[], |_, _| {}).unwrap();
    assert!(report.sound(), "{report:?}");
    let gone = report.first - 1;
    assert!(gone > 50, "{report:?}");
    assert_eq!(report.undelivered["copy"], gone, "{report:?}");
    // Back again, it gets the rest, and it is known how many it did not get.
    fs::remove_dir(&copy).unwrap();
    let rest = batch(gone + 1..=250);
    eventually("the rest", || copied(&copy).ends_with(&rest));
    // What was in memory when it was removed came all the same.
    let came = copied(&copy);
    let early = came.strip_suffix(&rest).unwrap();
    let early_count = u64::try_from(early.lines().count()).unwrap();
    assert_eq!(early, batch(1..=early_count));
    assert_eq!(pen.fleet().status()["copy"].lost, gone - early_count);
}

#[test]
fn what_did_not_come_is_in_the_ledger_with_exact_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut pen = Pen::new(&config, &Ships::new()).unwrap();
    let left = |lost, orders| LeftOut {
        lost,
        sampled: BTreeMap::from([("orders".to_owned(), orders)]),
    };
    pen.write(batch(1..=10).as_bytes()).unwrap();
    pen.left_out(&left(3, 4)).unwrap();
    pen.write(batch(11..=20).as_bytes()).unwrap();
    pen.left_out(&left(0, 5)).unwrap();
    pen.rest();
    let report = verify(&config.folder, &[], |_, _| {}).unwrap();
    assert!(report.sound(), "{report:?}");
    assert_eq!((report.last, report.lost), (20, 3));
    assert_eq!(report.sampled["orders"], 9);
    let text = report.to_string();
    assert!(text.contains("9 more records of route orders"), "{text}");
}

#[test]
fn a_line_that_was_begun_is_ended_and_none_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    // A process that was killed left this.
    fs::write(&copy, "{\"torn\":").unwrap();
    let mut local = local::Local::file(copy.clone());
    let (taken, written) = local.append(b"{\"a\":1}\n{\"b\":2}\n");
    written.unwrap();
    assert_eq!(taken, 2);
    assert_eq!(copied(&copy), "{\"torn\":\n{\"a\":1}\n{\"b\":2}\n");
    // Moved away: the next goes to a new one.
    fs::rename(&copy, folder.path().join("copy.1")).unwrap();
    local.append(b"{\"c\":3}\n").1.unwrap();
    assert_eq!(copied(&copy), "{\"c\":3}\n");
}

#[test]
fn chunks_are_parted_by_number_and_size_and_written_as_asked() {
    let mut chunk = Chunk::default();
    for number in 1..=10 {
        let line = format!("{{\"n\":{number}}}\n");
        chunk.push(
            ShipFormat::Portcullis,
            &labels(),
            line.as_bytes(),
            Position::default(),
        );
    }
    assert_eq!(chunk.fitting(0, 1000, usize::MAX), 10);
    assert_eq!(chunk.fitting(0, 3, usize::MAX), 3);
    assert_eq!(chunk.fitting(2, 3, usize::MAX), 5);
    assert_eq!(chunk.fitting(0, 1000, 17), 2);
    // One goes in any case.
    assert_eq!(chunk.fitting(9, 0, 0), 10);
    let array = chunk.body(&(1..4), ShipBody::Array, false).unwrap();
    let array: serde_json::Value = serde_json::from_slice(&array).unwrap();
    assert_eq!(array, serde_json::json!([{"n": 2}, {"n": 3}, {"n": 4}]));
    let packed = chunk.body(&(8..10), ShipBody::Lines, true).unwrap();
    let mut lines = String::new();
    GzDecoder::new(packed.as_slice())
        .read_to_string(&mut lines)
        .unwrap();
    assert_eq!(lines, "{\"n\":9}\n{\"n\":10}\n");
}

/// A server that takes what is posted to it, or does not, by the text of it.
struct Collector {
    address: std::net::SocketAddr,
    taken: Arc<Mutex<String>>,
}

impl Collector {
    fn start(judge: impl Fn(&str) -> u16 + Send + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::<Mutex<String>>::default();
        let takes = Arc::clone(&taken);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(body) = posted(&mut stream) else {
                    continue;
                };
                let status = judge(&body);
                if status == 200 {
                    locked(&takes).push_str(&body);
                }
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
            }
        });
        Self { address, taken }
    }

    fn destination(&self) -> Destination {
        let url = format!("http://{}/", self.address);
        Destination::Http(Server {
            fetcher: crate::fetch::Fetcher::for_deliveries(&[]).unwrap(),
            target: crate::fetch::Target::parse(&url).unwrap(),
            headers: Vec::new(),
            timeout: Duration::from_secs(5),
            gzip: false,
            body: ShipBody::Lines,
        })
    }

    /// What was taken, each once, in the order of the first time.
    fn once(&self) -> String {
        let taken = locked(&self.taken);
        let mut known = std::collections::BTreeSet::new();
        let lines = taken.split_inclusive('\n');
        lines.filter(|line| known.insert(*line)).collect()
    }
}

fn posted(stream: &mut std::net::TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part).ok().filter(|&count| count > 0)?;
        text.extend_from_slice(&part[..count]);
        let Some(end) = memchr::memmem::find(&text, b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&text[..end])
            .unwrap()
            .to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        if text.len() >= end + 4 + length {
            return Some(String::from_utf8(text[end + 4..].to_vec()).unwrap());
        }
    }
}

fn holds(body: &str, numbers: &std::ops::RangeInclusive<u64>) -> bool {
    numbers
        .clone()
        .any(|number| body.contains(&format!("\"r{number}\"")))
}

#[test]
fn records_that_are_never_taken_are_given_up_alone_however_they_are_batched_and_refused() {
    // How many go at once, in how many bytes, the status, and which are refused.
    for (records, size, status, refused) in [
        (1, 1_000, 400, 5..=5),
        (1000, 50, 400, 5..=6),
        (1000, 100_000, 403, 7..=7),
        (1, 1_000, 403, 3..=3),
        (1000, 1_000, 422, 5..=44),
        (1, 100_000, 400, 1..=40),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let hated = refused.clone();
        let collector =
            Collector::start(move |body| if holds(body, &hated) { status } else { 200 });
        let ships = ship(collector.destination(), |ship| {
            (ship.records, ship.size) = (records, size);
        });
        let mut pen = Pen::new(&config, &ships).unwrap();
        pen.write(batch(1..=150).as_bytes()).unwrap();
        pen.adopt(&ships, &labels());
        eventually("everything but what is refused", || {
            pen.fleet().status()["copy"].shipped == 150
        });
        let given_up = refused.clone().count();
        let case = format!("{records} {size} {status} {refused:?}");
        assert_eq!(
            pen.fleet().status()["copy"].lost,
            u64::try_from(given_up).unwrap(),
            "{case}"
        );
        let mut came: Vec<String> = collector.once().lines().map(str::to_owned).collect();
        let mut expected: Vec<String> = (1..=150)
            .filter(|number| !refused.contains(number))
            .map(|number| record(number).trim_end().to_owned())
            .collect();
        // Witnesses come before those between.
        came.sort();
        expected.sort();
        assert_eq!(came, expected, "{case}");
    }
}

#[test]
fn a_server_that_refuses_everything_or_now_and_then_costs_no_record() {
    for status in [400, 403, 401] {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let heals = Arc::new(AtomicU64::new(0));
        let healed = Arc::clone(&heals);
        let collector = Collector::start(move |_| {
            if healed.load(Ordering::Relaxed) == 1 {
                200
            } else {
                status
            }
        });
        let ships = ship(collector.destination(), |_| {});
        let mut pen = Pen::new(&config, &ships).unwrap();
        pen.write(batch(1..=60).as_bytes()).unwrap();
        pen.adopt(&ships, &labels());
        eventually("some failures", || {
            pen.fleet().status()["copy"].failures > 6
        });
        heals.store(1, Ordering::Relaxed);
        eventually("all", || pen.fleet().status()["copy"].shipped == 60);
        assert_eq!(collector.once(), batch(1..=60), "{status}");
        assert_eq!(pen.fleet().status()["copy"].lost, 0, "{status}");
    }
    // One that answers 403 often whatever it gets, then takes: what it took is there, nothing is lost.
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let asked = AtomicU64::new(0);
    let collector = Collector::start(move |_| {
        let turn = asked.fetch_add(1, Ordering::Relaxed) % 9;
        if turn < 7 { 403 } else { 200 }
    });
    let ships = ship(collector.destination(), |ship| ship.records = 1);
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.write(batch(1..=30).as_bytes()).unwrap();
    pen.adopt(&ships, &labels());
    eventually("all", || pen.fleet().status()["copy"].shipped == 30);
    assert_eq!(pen.fleet().status()["copy"].lost, 0);
}

#[test]
fn a_new_ledger_in_the_folder_is_shipped_from_its_first_record() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    for (round, count) in [("one", 80), ("two", 30)] {
        let copy = folder.path().join(round);
        let ships = ship(Destination::File(copy.clone()), |_| {});
        let mut pen = Pen::new(&config, &ships).unwrap();
        // Nothing of it may go before it was shipped.
        assert_eq!(pen.fleet().slowest(), Some(0), "{round}");
        pen.write(batch(1..=count).as_bytes()).unwrap();
        pen.adopt(&ships, &labels());
        eventually(round, || copied(&copy) == batch(1..=count));
        assert!(pen.fleet().finish(PATIENCE).is_empty());
        drop(pen);
        // The cursor stays.
        for file in fs::read_dir(&config.folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|end| end == "jsonl") {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn a_cursor_that_cannot_be_read_skips_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let copy = folder.path().join("copy");
    let ships = ship(Destination::File(copy.clone()), |ship| {
        ship.begin = ShipBegin::Newest;
    });
    let cursor = cursor::path_of(&config.folder, "copy");
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.write(batch(1..=10).as_bytes()).unwrap();
    pen.adopt(&ships, &labels());
    // Where it begins is known to the next one, though nothing was shipped yet.
    eventually("a cursor", || cursor.exists());
    drop(pen);
    let mut pen = Pen::new(&config, &Ships::new()).unwrap();
    pen.write(batch(11..=20).as_bytes()).unwrap();
    drop(pen);
    let pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    eventually("what came between", || copied(&copy) == batch(11..=20));
    drop(pen);
    fs::write(&cursor, "{").unwrap();
    let pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    let all = batch(11..=20) + &batch(1..=20);
    eventually("everything once more", || copied(&copy) == all);
}

#[test]
fn what_a_sink_has_not_got_when_it_is_removed_is_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let ships = ship(Destination::File(folder.path().to_owned()), |_| {});
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    pen.write(batch(1..=30).as_bytes()).unwrap();
    pen.adopt(&Ships::new(), &labels());
    pen.rest();
    let report = verify(&config.folder, &[], |_, _| {}).unwrap();
    assert!(report.sound(), "{report:?}");
    assert_eq!(report.undelivered["copy"], 30, "{report:?}");
}

#[test]
fn a_sink_that_is_ahead_after_a_crash_of_the_machine_gets_what_comes_and_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, copy) = (config(folder.path()), folder.path().join("copy.jsonl"));
    config.segment = Size::bytes(1 << 20);
    let metrics = Arc::<Metrics>::default();
    let ships = || {
        ship(Destination::File(copy.clone()), |ship| {
            ship.metrics = Arc::clone(&metrics);
        })
    };
    let (before, segment) = {
        let (mut pen, ships) = (Pen::new(&config, &ships()).unwrap(), ships());
        pen.adopt(&ships, &labels());
        pen.write(batch(1..=10).as_bytes()).unwrap();
        let before = pen.head().bytes;
        pen.write(batch(11..=20).as_bytes()).unwrap();
        assert!(pen.fleet().finish(PATIENCE).is_empty());
        (before, pen.head().segment)
    };
    assert_eq!(copied(&copy), batch(1..=20));
    // What was not forced to the disk is gone.
    let path = config.folder.join(format!("segment-{segment:016}.jsonl"));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(before).unwrap();
    drop(file);
    let ships = ships();
    let mut pen = Pen::new(&config, &ships).unwrap();
    assert_eq!(pen.head().records, 10);
    // More than the sink was ahead, before anybody ships: these have numbers that it took already.
    pen.write(batch(21..=35).as_bytes()).unwrap();
    pen.adopt(&ships, &labels());
    let all = batch(1..=35);
    eventually("what came since", || copied(&copy) == all);
    let text = metrics.encode();
    let counted = "portcullis_audit_ship_ahead_total{sink=\"copy\"} 10\n";
    assert!(text.contains(counted), "{text}");
    pen.rest();
    let report = verify(&config.folder, &[], |_, _| {}).unwrap();
    assert!(report.sound(), "{report:?}");
    assert_eq!(report.ahead["copy"], 10, "{report:?}");
    let said = "the sink copy has 10 more records, which a crash of the machine took";
    let notes = &report.notes;
    assert!(notes.iter().any(|note| note.contains(said)), "{notes:?}");
    // It is said once.
    drop(pen);
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    pen.write(batch(36..=36).as_bytes()).unwrap();
    let all = batch(1..=36);
    eventually("the next one", || copied(&copy) == all);
    assert!(metrics.encode().contains(counted));
}

#[test]
fn a_cursor_of_a_sink_that_is_configured_no_more_is_named_and_holds_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.keep.time = Some(Span::millis(0));
    let ships = ship(Destination::File(folder.path().join("copy")), |_| {});
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    pen.write(batch(1..=10).as_bytes()).unwrap();
    eventually("the first ones", || {
        copied(&folder.path().join("copy")) == batch(1..=10)
    });
    drop(pen);
    // The sink has another name now, and nobody saw it change.
    let names = ["renamed".to_owned()];
    let found = orphans(&config.folder, names.iter());
    assert_eq!(found, [("copy".to_owned(), 10)]);
    let known = ["copy".to_owned()];
    assert_eq!(orphans(&config.folder, known.iter()), []);
    fs::write(config.folder.join("ship/notes.txt"), "mine").unwrap();
    assert_eq!(orphans(&config.folder, [].iter()).len(), 1);
    let ship = Ship {
        name: "renamed".into(),
        ..Arc::into_inner(ships.into_values().next().unwrap()).unwrap()
    };
    let ships = Ships::from([("renamed".to_owned(), Arc::new(ship))]);
    let mut pen = Pen::new(&config, &ships).unwrap();
    pen.adopt(&ships, &labels());
    for number in 1..20 {
        let lines = batch(number * 10 + 1..=number * 10 + 10);
        pen.write(lines.as_bytes()).unwrap();
    }
    let all = batch(1..=10) + &batch(1..=200);
    eventually("everything once more", || {
        copied(&folder.path().join("copy")) == all
    });
    eventually("what is shipped to go for its age", || {
        pen.clone().refresh().unwrap();
        let report = verify(&config.folder, &[], |_, _| {}).unwrap();
        report.first > 100
    });
}
