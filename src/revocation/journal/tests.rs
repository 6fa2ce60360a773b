//! What was kept is there again; what was not completely written is cut; what is damaged is told.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::revocation::Target;
use crate::revocation::index::{ALTOGETHER, Kind, Mark, NEVER, SHARDS};

struct World {
    folder: TempDir,
    index: Arc<Index>,
    journal: Option<Journal>,
}

fn target(number: usize) -> Target {
    Target::Token {
        issuer: "https://issuer.test".into(),
        token_id: format!("t\"\u{1f980}-{number}"),
    }
}

const ALWAYS: Mark = Mark {
    mark: ALTOGETHER,
    until: NEVER,
};

impl World {
    fn new() -> Self {
        let mut world = Self {
            folder: TempDir::new().unwrap(),
            index: Arc::default(),
            journal: None,
        };
        world.open().unwrap();
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("revoked")
    }

    fn open(&mut self) -> Result<(), StoreError> {
        drop(self.journal.take());
        self.index = Arc::new(Index::new(SHARDS));
        let opened = Journal::open(
            &self.path(),
            Arc::clone(&self.index),
            Arc::default(),
            10_000,
        )?;
        self.journal = Some(opened);
        Ok(())
    }

    fn close(&mut self) {
        drop(self.journal.take());
    }

    fn revoke(&self, number: usize) -> bool {
        let target = target(number);
        self.index.insert(target.key(), ALWAYS, 1, usize::MAX);
        let mut text = Vec::new();
        Line::revoke(&target, ALWAYS, 7, "test", Some("because")).write(&mut text);
        self.journal.as_ref().unwrap().keep(text, 1).kept_here()
    }

    fn lift(&self, number: usize) -> bool {
        let lift = crate::revocation::Lift {
            target: target(number),
            source: "test".into(),
            reason: None,
        };
        self.index.lift(lift.target.key(), 1);
        let mut text = Vec::new();
        Line::lift(&lift, 8).write(&mut text);
        self.journal.as_ref().unwrap().keep(text, 1).kept_here()
    }

    fn has(&self, number: usize) -> bool {
        self.index.get(target(number).key(), 1).is_some()
    }

    fn length(&self) -> u64 {
        self.path().metadata().unwrap().len()
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new(1)
    }
}

#[test]
fn a_line_reads_as_it_was_written_and_not_when_a_byte_is_another() {
    let mut text = Vec::new();
    let target = target(1);
    let mark = Mark { mark: 5, until: 77 };
    let line = Line::revoke(&target, mark, 9, "admin", Some("left \\ \"us\""));
    line.write(&mut text);
    assert_eq!(text.pop(), Some(b'\n'));
    let read = Line::read(&text).unwrap();
    assert_eq!(read, line);
    assert_eq!(read.mark(), mark);
    assert_eq!(read.target(), Some(target.clone()));
    assert_eq!(read.key(), Some(target.key()));
    for place in 0..text.len() {
        let mut damaged = text.clone();
        damaged[place] ^= 1;
        assert!(Line::read(&damaged).is_none(), "byte {place}");
    }
    assert!(Line::read(&text[..text.len() - 1]).is_none());
    assert!(Line::read(b"").is_none());
}

#[test]
fn what_was_kept_is_there_again_and_what_was_lifted_is_not() {
    let mut world = World::new();
    for number in 0..50 {
        assert!(world.revoke(number));
    }
    assert!(world.lift(3));
    let mode = world.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    world.open().unwrap();
    for number in 0..50 {
        assert_eq!(world.has(number), number != 3, "{number}");
    }
    assert_eq!(world.index.count(Kind::Token), 49);
    // And it goes on behind that.
    assert!(world.revoke(51));
    world.open().unwrap();
    assert!(world.has(51) && world.has(49));
}

#[test]
fn an_end_that_was_not_written_is_cut_off_wherever_it_broke() {
    let mut world = World::new();
    assert!(world.revoke(1));
    let whole = world.length();
    assert!(world.revoke(2));
    let full = world.length();
    world.close();
    let bytes = std::fs::read(world.path()).unwrap();
    for length in (0..full).rev().step_by(7).chain([whole, 24, 25]) {
        let length = usize::try_from(length).unwrap();
        std::fs::write(world.path(), &bytes[..length]).unwrap();
        world.open().unwrap();
        let expected = u64::try_from(length).unwrap() >= whole;
        assert_eq!(world.has(1), expected, "cut at {length}");
        assert!(!world.has(2), "cut at {length}");
        // What is written next is behind something whole.
        assert!(world.revoke(9));
        world.open().unwrap();
        assert!(world.has(9));
        assert_eq!(world.has(1), expected);
        world.close();
    }
    // A block of zeros where the end of a batch should be.
    let mut zeros = bytes.clone();
    let end = zeros.len();
    zeros[end - 20..].fill(0);
    std::fs::write(world.path(), &zeros).unwrap();
    world.open().unwrap();
    assert!(world.has(1) && !world.has(2));
}

#[test]
fn damage_in_the_middle_is_told_with_its_place_and_nothing_starts() {
    let mut world = World::new();
    for number in 0..3 {
        assert!(world.revoke(number));
    }
    world.close();
    let bytes = std::fs::read(world.path()).unwrap();
    let second = HEADER.len()
        + bytes[HEADER.len()..]
            .iter()
            .position(|b| *b == b'\n')
            .unwrap()
        + 1;
    let mut damaged = bytes.clone();
    damaged[second + 30] ^= 0x20;
    std::fs::write(world.path(), &damaged).unwrap();
    let error = world.open().unwrap_err();
    assert!(
        matches!(&error, StoreError::Damaged { line: 3, offset, .. } if *offset == u64::try_from(second).unwrap()),
        "{error}"
    );
    assert!(error.to_string().contains("line 3"), "{error}");
    assert_eq!(
        std::fs::read(world.path()).unwrap(),
        damaged,
        "the evidence stays"
    );
    // As the message says: without the line it works.
    let third = second + bytes[second..].iter().position(|b| *b == b'\n').unwrap() + 1;
    let without = [&bytes[..second], &bytes[third..]].concat();
    std::fs::write(world.path(), without).unwrap();
    world.open().unwrap();
    assert!(world.has(0) && !world.has(1) && world.has(2));
}

#[test]
fn what_is_no_journal_is_left_alone() {
    let mut world = World::new();
    world.close();
    for text in [
        "hello, this is my diary\n",
        "portcullis-revocations 2\n",
        "{}",
    ] {
        std::fs::write(world.path(), text).unwrap();
        let error = world.open().unwrap_err();
        assert!(matches!(error, StoreError::Foreign(_)), "{error}");
        assert_eq!(std::fs::read_to_string(world.path()).unwrap(), text);
    }
    std::fs::remove_file(world.path()).unwrap();
    std::fs::create_dir(world.path()).unwrap();
    assert!(matches!(world.open().unwrap_err(), StoreError::Foreign(_)));
}

#[test]
fn two_gateways_do_not_share_a_store() {
    let world = World::new();
    let error = Journal::open(&world.path(), Arc::default(), Arc::default(), 10).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
}

#[test]
fn a_store_that_holds_more_than_there_is_room_for_does_not_open() {
    let mut world = World::new();
    for number in 0..20 {
        assert!(world.revoke(number));
    }
    world.close();
    let error = Journal::open(&world.path(), Arc::default(), Arc::default(), 10).unwrap_err();
    assert!(
        matches!(error, StoreError::Full { room: 10, .. }),
        "{error}"
    );
}

#[test]
fn others_are_kept_out_of_a_store_that_they_could_read() {
    let mut world = World::new();
    world.close();
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(world.path(), open).unwrap();
    world.open().unwrap();
    let mode = world.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn void_lines_are_left_behind_and_nothing_else_is() {
    let mut world = World::new();
    for number in 0..300 {
        assert!(world.revoke(number));
    }
    let text = |range: std::ops::Range<usize>| {
        let mut text = Vec::new();
        for number in range {
            let target = target(number);
            Line::revoke(&target, ALWAYS, 7, "test", None).write(&mut text);
            let lift = crate::revocation::Lift {
                target,
                source: "test".into(),
                reason: None,
            };
            Line::lift(&lift, 8).write(&mut text);
        }
        text
    };
    let before = world.length();
    let journal = world.journal.as_ref().unwrap();
    assert!(journal.keep(text(1000..4000), 6000).kept_here());
    let health = &journal.health;
    let deadline = Instant::now() + Duration::from_secs(20);
    while health.lines.load(Ordering::Relaxed) > 1000 {
        assert!(Instant::now() < deadline, "it was not made smaller");
        // Something is written meanwhile.
        assert!(world.revoke(300));
        std::thread::yield_now();
    }
    assert!(world.length() < 2 * before + 200_000);
    assert!(world.revoke(301));
    let kept = world.index.count(Kind::Token);
    assert_eq!(kept, 302);
    world.open().unwrap();
    assert_eq!(world.index.count(Kind::Token), kept);
    for number in 0..302 {
        assert!(world.has(number), "{number}");
    }
    assert!(!world.folder.path().join("revoked.new").exists());
    let mode = world.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_was_raised_and_given_up_is_not_left_behind() {
    let mut world = World::new();
    let subject = Target::Subject {
        issuer: "https://issuer.test".into(),
        subject: "alice".into(),
    };
    let mark = |mark| Mark { mark, until: NEVER };
    let mut text = Vec::new();
    // Two lines that say less than the index knows, and many that are void.
    for before in [5, 6] {
        Line::revoke(&subject, mark(before), 7, "test", Some("because")).write(&mut text);
    }
    for number in 0..3000 {
        Line::revoke(&target(number), ALWAYS, 7, "test", None).write(&mut text);
    }
    world.index.insert(subject.key(), mark(9), 1, usize::MAX);
    let journal = world.journal.as_ref().unwrap();
    journal.health.lost.store(true, Ordering::Relaxed);
    assert!(journal.keep(text, 3002).kept_here());
    let deadline = Instant::now() + Duration::from_secs(20);
    while journal.health.lines.load(Ordering::Relaxed) > 1000 {
        assert!(Instant::now() < deadline, "it was not made smaller");
        std::thread::yield_now();
    }
    assert_eq!(journal.health.lines.load(Ordering::Relaxed), 1);
    world.open().unwrap();
    assert_eq!(world.index.get(subject.key(), 1), Some(mark(9)));
}

#[test]
fn a_disk_that_fails_is_told_and_written_to_when_it_is_well_again() {
    let mut world = World::new();
    assert!(world.revoke(1));
    world.close();
    // The thread's work by hand, with a file that takes no more.
    let index = Arc::new(Index::new(SHARDS));
    let file = JournalFile::open(&world.path(), |_| Verdict::Good).unwrap();
    let mut writer = Writer {
        file,
        index,
        turn: Arc::default(),
        health: Arc::default(),
        waiting: Vec::new(),
        waiting_lines: 0,
        compaction: None,
        pause_until: Instant::now(),
        least: 0,
    };
    let length = writer.file.length;
    let good = writer
        .file
        .swap_for_tests(OpenOptions::new().read(true).open(world.path()).unwrap());
    let (send, receive) = sync_channel(4);
    let batch = |number| {
        let mut text = Vec::new();
        Line::revoke(&target(number), ALWAYS, 7, "test", None).write(&mut text);
        let receipt = Arc::new(Receipt::default());
        let batch = Batch {
            text,
            lines: 1,
            receipt: Arc::clone(&receipt),
        };
        (batch, receipt)
    };
    let (first, refused) = batch(2);
    writer.take(first, &receive);
    assert!(!refused.kept_here());
    assert_eq!(writer.health.unsaved.load(Ordering::Relaxed), 1);
    assert!(writer.health.error.lock().unwrap().is_some());
    assert_eq!(writer.file.length, length);
    // Well again: what waited goes first.
    drop(writer.file.swap_for_tests(good));
    let (second, kept) = batch(3);
    writer.take(second, &receive);
    assert!(kept.kept_here());
    assert_eq!(writer.health.unsaved.load(Ordering::Relaxed), 0);
    assert!(writer.health.error.lock().unwrap().is_none());
    drop((writer, send));
    world.close();
    world.open().unwrap();
    assert!(world.has(1) && world.has(2) && world.has(3));
}

#[test]
fn what_waits_for_a_disk_is_bounded() {
    let mut world = World::new();
    world.close();
    let file = JournalFile::open(&world.path(), |_| Verdict::Good).unwrap();
    let mut writer = Writer {
        file,
        index: Arc::default(),
        turn: Arc::default(),
        health: Arc::default(),
        waiting: vec![b'x'; MAX_WAITING + 1],
        waiting_lines: 5,
        compaction: None,
        pause_until: Instant::now(),
        least: 0,
    };
    drop(
        writer
            .file
            .swap_for_tests(OpenOptions::new().read(true).open(world.path()).unwrap()),
    );
    writer.write(Vec::new());
    assert!(writer.waiting.is_empty());
    assert!(writer.health.lost.load(Ordering::Relaxed));
}

#[test]
fn a_list_is_read_in_pages_and_holds_what_is_in_force() {
    let world = World::new();
    for number in 0..25 {
        assert!(world.revoke(number));
    }
    assert!(world.lift(4));
    assert!(world.revoke(4));
    assert!(world.lift(5));
    let mut names = Vec::new();
    let mut after = None;
    let mut pages = 0;
    loop {
        let mut count = 0;
        let next = world
            .journal
            .as_ref()
            .unwrap()
            .page(&world.index, after, 1, |line| {
                if count == 10 {
                    return false;
                }
                count += 1;
                names.push(line.name.clone().into_owned());
                true
            })
            .unwrap();
        pages += 1;
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(pages, 3);
    // The one that was lifted and came back has two lines that say the same.
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 24);
    assert!(!names.contains(&target(5).name().to_owned()));
    let stale = Some((1, 1000));
    let page = world
        .journal
        .as_ref()
        .unwrap()
        .page(&world.index, stale, 1, |_| true);
    assert_eq!(page.unwrap_err().kind(), io::ErrorKind::NotFound);
}
