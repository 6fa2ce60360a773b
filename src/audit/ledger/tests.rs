//! Whatever is done to a ledger behind the gateway's back is found, and said where.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use proptest::prelude::*;

use super::*;

fn key() -> Arc<SealingKey> {
    let pair = Ed25519KeyPair::generate().unwrap();
    let der = pair.to_pkcs8v1().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    Arc::new(SealingKey::from_pem(pem.as_bytes()).unwrap())
}

fn settings(key: Option<&Arc<SealingKey>>) -> Settings {
    Settings {
        key: key.cloned(),
        seal_every: Duration::ZERO,
        sync: Duration::ZERO,
        segment: 1 << 20,
        keep: KeepConfig::default(),
    }
}

fn record(number: u64) -> String {
    format!("{{\"version\":1,\"request_id\":\"r{number}\"}}\n")
}

fn batch(numbers: std::ops::RangeInclusive<u64>) -> Vec<u8> {
    numbers.map(record).collect::<String>().into_bytes()
}

/// A ledger of batches of ten records, sealed after each.
fn written(folder: &Path, settings: Settings, batches: u64) {
    let mut ledger = Ledger::new(folder.to_owned(), settings);
    for number in 0..batches {
        ledger
            .append(&batch(number * 10 + 1..=number * 10 + 10))
            .unwrap();
        ledger.tend().unwrap();
    }
}

fn check(folder: &Path, keys: &[&Arc<SealingKey>]) -> Report {
    let keys: Vec<PublicKey> = keys.iter().map(|key| key.public.clone()).collect();
    verify(folder, &keys, |_, _| {}).unwrap()
}

fn first(folder: &Path) -> PathBuf {
    scan::path_of(folder, 1)
}

/// Changes the lines of the first segment.
fn edit(folder: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let text = fs::read_to_string(first(folder)).unwrap();
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    change(&mut lines);
    fs::write(first(folder), lines.concat()).unwrap();
}

/// The first finding: record and words.
fn found(folder: &Path, key: &Arc<SealingKey>) -> (u64, Option<u64>, String) {
    let report = check(folder, &[key]);
    let finding = report.findings.first().cloned();
    let finding = finding.unwrap_or_else(|| panic!("nothing was found: {report:?}"));
    (finding.line, finding.record, finding.what)
}

#[test]
fn what_nobody_touched_verifies_over_segments_and_restarts() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    for round in 0..3_u64 {
        let mut ledger = Ledger::new(
            folder.path().to_owned(),
            Settings {
                segment: 2_000,
                ..settings(Some(&key))
            },
        );
        for number in 0..10 {
            let begin = round * 100 + number * 10 + 1;
            ledger.append(&batch(begin..=begin + 9)).unwrap();
            ledger.tend().unwrap();
        }
    }
    let report = check(folder.path(), &[&key]);
    assert!(report.sound(), "{report:?}");
    assert_eq!((report.first, report.last, report.sealed), (1, 300, 300));
    assert!(report.segments > 5, "{report:?}");
    assert_eq!(report.keys, std::slice::from_ref(&key.kid));
    // Records stay as they were: whoever reads lines finds them.
    let all: String = scan::segments(folder.path())
        .unwrap()
        .iter()
        .map(|segment| fs::read_to_string(&segment.path).unwrap())
        .collect();
    let records: Vec<&str> = all
        .lines()
        .filter(|line| line.starts_with("{\"version\":1,"))
        .collect();
    assert_eq!(records.len(), 300);
    assert_eq!(records[299], record(300).trim_end());
}

#[test]
fn a_changed_missing_doubled_moved_or_added_record_is_named() {
    type Edit = fn(&mut Vec<String>);
    // Lines: 1 opening, 2..=11 records 1 to 10, 12 block, 13 seal, 14..=23 records 11 to 20 …
    let edits: [(&str, Edit, u64, Option<u64>, &str); 8] = [
        (
            "one byte",
            |lines| lines[16] = lines[16].replace("r14", "r24"),
            17,
            Some(14),
            "was changed",
        ),
        (
            "missing",
            |lines| drop(lines.remove(16)),
            17,
            Some(14),
            "is missing",
        ),
        (
            "doubled",
            |lines| lines.insert(17, lines[16].clone()),
            18,
            Some(14),
            "is there twice",
        ),
        (
            "two changed places",
            |lines| lines.swap(16, 17),
            17,
            Some(14),
            "was moved: it stands in line 18",
        ),
        (
            "added",
            |lines| lines.insert(16, record(99)),
            17,
            None,
            "was added",
        ),
        (
            "a block with its records",
            |lines| drop(lines.drain(13..25)),
            24,
            Some(11),
            "the block begins with record 21, and 10 was the last: records are missing",
        ),
        (
            "a seal",
            |lines| drop(lines.remove(12)),
            23,
            None,
            "the line was changed, or one of the ledger's own before it is missing: its hash is another one",
        ),
        (
            "a block's own line",
            |lines| lines[23] = lines[23].replace("\"time\":\"2", "\"time\":\"1"),
            24,
            None,
            "the line was changed, or one of the ledger's own before it is missing: its hash is another one",
        ),
    ];
    for (name, change, line, record, what) in edits {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        written(folder.path(), settings(Some(&key)), 4);
        assert!(check(folder.path(), &[&key]).sound());
        edit(folder.path(), change);
        let expected = (line, record, what.to_owned());
        assert_eq!(found(folder.path(), &key), expected, "{name}");
    }
}

#[test]
fn a_chain_made_anew_over_changed_records_lacks_the_signatures() {
    let (folder, forged, key) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        key(),
    );
    written(folder.path(), settings(Some(&key)), 4);
    // With another key, and with none.
    let other = self::key();
    written(forged.path(), settings(Some(&other)), 4);
    let (_, _, what) = found(forged.path(), &key);
    assert!(
        what.starts_with("signed by a key that was not given"),
        "{what}"
    );
    let bare = tempfile::tempdir().unwrap();
    written(bare.path(), settings(None), 4);
    let (line, record, what) = found(bare.path(), &key);
    assert_eq!((line, record), (2, Some(1)));
    assert!(what.starts_with("records 1 to 40 are not signed"), "{what}");
    // Without a key the chain holds all the same, and that is said.
    let report = check(bare.path(), &[]);
    assert!(report.sound());
    assert!(report.notes[0].contains("signatures were not verified"));
}

#[test]
fn an_end_that_was_cut_off_is_missed_by_the_next_segment_and_by_the_hash_kept_elsewhere() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let small = Settings {
        segment: 1_000,
        ..settings(Some(&key))
    };
    written(folder.path(), small, 8);
    let before = check(folder.path(), &[&key]);
    assert!(before.sound() && before.segments > 2);
    // The end of the first segment: its last block and seal.
    edit(folder.path(), |lines| lines.truncate(lines.len() - 12));
    let report = check(folder.path(), &[&key]);
    let finding = &report.findings[0];
    assert_eq!(finding.file, scan::path_of(folder.path(), 2));
    assert!(finding.what.contains("was cut off"), "{report:?}");
    assert_ne!(before.hash, "");
    // A segment in the middle.
    fs::remove_file(scan::path_of(folder.path(), 2)).unwrap();
    let report = check(folder.path(), &[&key]);
    let missing = |finding: &Finding| finding.what.contains("segment 2 is missing");
    assert!(report.findings.iter().any(missing), "{report:?}");
    // The first.
    fs::remove_file(first(folder.path())).unwrap();
    let report = check(folder.path(), &[&key]);
    let missing = |finding: &Finding| finding.what.contains("nothing says that they were removed");
    assert!(report.findings.iter().any(missing), "{report:?}");
}

#[test]
fn a_rotated_key_is_vouched_for_by_the_one_before() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), key(), key());
    let mut ledger = Ledger::new(folder.path().to_owned(), settings(Some(&old)));
    ledger.append(&batch(1..=10)).unwrap();
    ledger.change(settings(Some(&new)));
    ledger.append(&batch(11..=20)).unwrap();
    ledger.tend().unwrap();
    drop(ledger);
    let report = check(folder.path(), &[&old]);
    assert!(report.sound(), "{report:?}");
    assert_eq!(report.keys, [old.kid.clone(), new.kid.clone()]);
    assert_eq!(report.sealed, 20);
    // The new one alone does not vouch for what was before.
    assert!(!check(folder.path(), &[&new]).sound());
    assert!(check(folder.path(), &[&old, &new]).sound());
}

#[test]
fn old_segments_are_removed_when_asked_and_the_ledger_says_so() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let keep = KeepConfig {
        size: Some(Size::bytes(6_000)),
        time: None,
    };
    let small = Settings {
        segment: 1_500,
        keep,
        ..settings(Some(&key))
    };
    written(folder.path(), small, 30);
    let segments = scan::segments(folder.path()).unwrap();
    let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
    assert!(total < 6_000 + 2 * 1_500, "{total}");
    assert!(segments[0].number > 1);
    let report = check(folder.path(), &[&key]);
    assert!(report.sound(), "{report:?}");
    assert!(report.first > 1);
    assert_eq!(report.last, 300);
    assert!(report.notes[0].contains("was removed on"), "{report:?}");
}

#[test]
fn a_ledger_made_anew_does_not_pass_because_somebody_holds_the_lock() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    written(folder.path(), settings(None), 4);
    let lock = File::create(folder.path().join(LOCK)).unwrap();
    lock.lock().unwrap();
    let report = check(folder.path(), &[&key]);
    assert!(report.open && !report.sound(), "{report:?}");
}

#[test]
fn a_note_of_removed_segments_counts_only_under_a_signature() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let small = Settings {
        segment: 1_000,
        ..settings(Some(&key))
    };
    written(folder.path(), small, 8);
    fs::remove_file(first(folder.path())).unwrap();
    // Whoever can write the folder can add a note, and its hash.
    let last = scan::segments(folder.path()).unwrap().pop().unwrap();
    let end = scan::end(&last.path).unwrap().unwrap();
    let note = Own::Dropped(Dropped {
        segments: (1, 1),
        last: 10,
        time: now(),
    });
    let mut bytes = fs::read(&last.path).unwrap();
    let mut chain = Chain::after(end.hash);
    chain.write(&note, &mut bytes, |_| String::new()).unwrap();
    fs::write(&last.path, bytes).unwrap();
    let report = check(folder.path(), &[&key]);
    let missing = |finding: &Finding| finding.what.contains("nothing says that they were removed");
    assert!(report.findings.iter().any(missing), "{report:?}");
}

#[test]
fn a_segment_that_is_taken_away_is_missed_at_once() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let mut ledger = Ledger::new(folder.path().to_owned(), settings(Some(&key)));
    ledger.append(&batch(1..=10)).unwrap();
    ledger.tend().unwrap();
    fs::rename(first(folder.path()), folder.path().join("away")).unwrap();
    ledger.tend().unwrap();
    ledger.append(&batch(11..=20)).unwrap();
    ledger.tend().unwrap();
    drop(ledger);
    let report = check(folder.path(), &[&key]);
    assert!(!report.sound(), "{report:?}");
    assert_eq!((report.first, report.last), (11, 20));
    assert!(report.notes.iter().any(|note| note.contains("taken away")));
}

#[test]
fn settings_of_a_configuration_that_never_came_in_force_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = |keep: KeepConfig| LedgerConfig {
        folder: folder.path().to_path_buf(),
        key: None,
        seal_every: default_seal_every(),
        sync: default_sync(),
        segment: default_segment(),
        keep,
    };
    let one = Pen::new(&config(KeepConfig::default()), &Ships::new()).unwrap();
    let tight = KeepConfig {
        size: Some(Size::kib(64)),
        time: None,
    };
    let other = Pen::new(&config(tight.clone()), &Ships::new()).unwrap();
    assert_eq!(locked(&one.ledger).settings.keep, KeepConfig::default());
    other.adopt(&Ships::new(), &Labels::new("test", []));
    assert_eq!(locked(&one.ledger).settings.keep, tight);
}

#[test]
fn a_clock_that_jumps_forward_removes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let keep = KeepConfig {
        size: None,
        time: Some(Span::seconds(60)),
    };
    let mut ledger = Ledger::new(
        folder.path().to_owned(),
        Settings {
            segment: 100,
            keep,
            ..settings(None)
        },
    );
    for number in 1..=5 {
        ledger.append(&batch(number..=number)).unwrap();
    }
    let segments = scan::segments(folder.path()).unwrap();
    assert!(segments.len() > 4);
    // As if the segments were a day old.
    for segment in &segments {
        let file = File::options().append(true).open(&segment.path).unwrap();
        file.set_modified(clock::now() - Duration::from_secs(86_400))
            .unwrap();
    }
    let begun = ledger.begun;
    ledger.begun.0 = clock::now() - Duration::from_secs(86_400);
    ledger.retire().unwrap();
    assert_eq!(scan::segments(folder.path()).unwrap(), segments);
    // With a clock that went as it should, they go.
    ledger.begun = begun;
    ledger.retire().unwrap();
    assert_eq!(scan::segments(folder.path()).unwrap().len(), 1);
    assert!(check(folder.path(), &[]).sound());
}

#[test]
fn a_process_that_was_killed_at_any_byte_loses_at_most_the_line_it_wrote() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    written(folder.path(), settings(Some(&key)), 3);
    let whole = fs::read(first(folder.path())).unwrap();
    // Every byte around the ends of lines, every third elsewhere.
    let near = |at: usize| whole[at.saturating_sub(2)..=at].contains(&b'\n');
    for end in (0..whole.len()).filter(|&at| at % 3 == 0 || near(at)) {
        let cut = tempfile::tempdir().unwrap();
        fs::write(first(cut.path()), &whole[..end]).unwrap();
        let lines = whole[..end].iter().filter(|&&byte| byte == b'\n').count();
        let lazy = Settings {
            sync: LONGEST_SYNC.get(),
            ..settings(Some(&key))
        };
        let mut ledger = Ledger::new(cut.path().to_owned(), lazy);
        ledger.append(&batch(101..=101)).unwrap();
        ledger.tend().unwrap();
        drop(ledger);
        let report = check(cut.path(), &[&key]);
        assert!(report.sound(), "cut at {end}: {report:?}");
        let own = [0, 11, 12, 23, 24, 35, 36];
        let records = (0..lines).filter(|line| !own.contains(line)).count();
        assert_eq!(
            report.last,
            u64::try_from(records).unwrap() + 1,
            "cut at {end}"
        );
    }
}

#[test]
fn a_ledger_that_was_changed_goes_on_in_a_new_segment_and_is_not_mended() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    written(folder.path(), settings(Some(&key)), 3);
    edit(folder.path(), |lines| {
        lines[16] = lines[16].replace("r14", "r24");
    });
    let mut ledger = Ledger::new(folder.path().to_owned(), settings(Some(&key)));
    ledger.append(&batch(31..=31)).unwrap();
    ledger.tend().unwrap();
    drop(ledger);
    let report = check(folder.path(), &[&key]);
    assert_eq!(report.segments, 2);
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!(report.findings[0].record, Some(14));
    assert!(report.notes.iter().any(|note| note.contains("broken")));
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    // The limit of a process's file size stands for the disk; it is the test's own process's, so a
    // file that refuses is enough here: the ledger's file opened for reading only.
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::new(folder.path().to_owned(), settings(None));
    ledger.append(&batch(1..=10)).unwrap();
    let open = ledger.open.as_mut().unwrap();
    let writable = std::mem::replace(&mut open.file, File::open(first(folder.path())).unwrap());
    let before = open.bytes;
    assert!(ledger.append(&batch(11..=20)).is_err());
    let open = ledger.open.as_mut().unwrap();
    assert_eq!(open.bytes, before);
    // It could not even be cut: so it is read anew before anything is written again.
    assert!(open.torn);
    drop(writable);
    ledger.append(&batch(11..=20)).unwrap();
    drop(ledger);
    let report = check(folder.path(), &[]);
    assert!(report.sound(), "{report:?}");
    assert_eq!(report.last, 20);
}

#[test]
fn a_folder_has_one_process_and_one_ledger_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = LedgerConfig {
        folder: folder.path().join("deep/audit"),
        key: None,
        seal_every: default_seal_every(),
        sync: default_sync(),
        segment: default_segment(),
        keep: KeepConfig::default(),
    };
    let one = Pen::new(&config, &Ships::new()).unwrap();
    let mut other = Pen::new(&config, &Ships::new()).unwrap();
    assert!(Arc::ptr_eq(&one.ledger, &other.ledger));
    assert_eq!(other.write(&batch(1..=2)).unwrap(), batch(1..=2).len());
    // As another process would find it.
    let mut foreign = Ledger::new(config.folder.clone(), settings(None));
    let error = foreign.append(&batch(1..=1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    let mode = fs::metadata(&config.folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
    drop((one, other));
    assert!(check(&config.folder, &[]).sound());
}

#[test]
fn only_whole_lines_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut pen = Pen {
        fleet: Arc::default(),
        ledger: Arc::new(Mutex::new(Ledger::new(
            folder.path().to_owned(),
            settings(None),
        ))),
        settings: settings(None),
    };
    let mut lines = batch(1..=3);
    let whole = lines.len();
    lines.extend_from_slice(b"{\"version\":1,\"requ");
    assert_eq!(pen.write(&lines).unwrap(), whole);
    drop(pen);
    assert_eq!(check(folder.path(), &[]).last, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No byte of a ledger can be changed unseen.
    #[test]
    fn any_flipped_bit_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        written(folder.path(), settings(Some(&key)), 3);
        let path = first(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        prop_assert!(!check(folder.path(), &[&key]).sound(), "byte {at}, bit {bit}");
    }

    /// Nor can any lines be left out, doubled or moved.
    #[test]
    fn any_other_order_of_lines_is_found(
        one in 0..36_usize,
        other in 0..36_usize,
        how in 0..3_u8,
    ) {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        written(folder.path(), settings(Some(&key)), 3);
        prop_assume!(one != other || how != 2);
        // The last line may be left out, for that is how the ledger stood before it was written.
        prop_assume!(how != 0 || one != 36);
        edit(folder.path(), |lines| match how {
            0 => drop(lines.remove(one)),
            1 => lines.insert(other, lines[one].clone()),
            _ => lines.swap(one, other),
        });
        prop_assert!(!check(folder.path(), &[&key]).sound(), "{one} {other} {how}");
    }
}

#[test]
fn on_a_full_disk_the_reserve_makes_room_to_say_what_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let keep = |size| KeepConfig {
        size: Some(Size::bytes(size)),
        time: None,
    };
    let key = key();
    let mut ledger = Ledger::new(
        folder.path().to_owned(),
        Settings {
            segment: 500,
            keep: keep(1 << 20),
            ..settings(Some(&key))
        },
    );
    for number in 0..8 {
        ledger
            .append(&batch(number * 10 + 1..=number * 10 + 10))
            .unwrap();
        ledger.tend().unwrap();
    }
    let reserve = folder.path().join(RESERVE);
    assert_eq!(fs::metadata(&reserve).unwrap().len(), RESERVED);
    let before = scan::segments(folder.path()).unwrap().len();
    ledger.settings.keep = keep(2_000);
    // Every write says that there is no room, until the ledger is opened anew.
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    ledger.open.as_mut().unwrap().file = full;
    ledger.retire().unwrap();
    assert!(!reserve.exists());
    let after = scan::segments(folder.path()).unwrap().len();
    assert!(after < before, "{after} of {before}");
    ledger.append(&batch(81..=90)).unwrap();
    ledger.retire().unwrap();
    assert!(reserve.exists(), "the next time there is one again");
    ledger.seal().unwrap();
    let report = check(folder.path(), &[&key]);
    assert!(report.sound(), "{report:?}");
    assert_eq!(report.last, 90);
}

#[test]
fn a_seal_that_cannot_be_written_does_not_keep_old_segments_from_making_room() {
    let (folder, key) = (tempfile::tempdir().unwrap(), key());
    let keep = |size| KeepConfig {
        size: Some(Size::bytes(size)),
        time: None,
    };
    let mut ledger = Ledger::new(
        folder.path().to_owned(),
        Settings {
            segment: 500,
            keep: keep(1 << 20),
            ..settings(Some(&key))
        },
    );
    for number in 0..8 {
        ledger
            .append(&batch(number * 10 + 1..=number * 10 + 10))
            .unwrap();
        ledger.tend().unwrap();
    }
    ledger.append(&batch(81..=90)).unwrap();
    let before = scan::segments(folder.path()).unwrap().len();
    // It was looked at a moment ago, so nothing but the failure makes it look again.
    ledger.looked_at = Some(Instant::now());
    ledger.settings.keep = keep(2_000);
    let open = ledger.open.as_mut().unwrap();
    // The same file, in which nothing can be written until it is opened anew.
    open.file = File::open(scan::path_of(folder.path(), open.segment)).unwrap();
    assert!(ledger.tend().is_err(), "the seal");
    let after = scan::segments(folder.path()).unwrap().len();
    assert!(after < before, "{after} of {before}");
    ledger.tend().unwrap();
    let report = check(folder.path(), &[&key]);
    assert!(report.sound(), "{report:?}");
    assert_eq!(report.last, 90);
}
