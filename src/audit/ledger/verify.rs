//! Whether a ledger is as it was written.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::LOCK;
use super::keys::PublicKey;
use super::lines::{self, Block, Chain, Hash, Note, Opening, Own, Read, Seal};
use super::scan::{self, Lines, Next, Segment};
use crate::clock;

/// Most findings that are told; what is wrong from one end to the other is told by the first.
const MAX_FINDINGS: usize = 100;

/// How long a running gateway may leave records unsigned: twice the longest `seal_every`.
const UNSIGNED: Duration = Duration::seconds(120);

/// Most records of a block that are compared one by one to tell which was changed.
const MAX_COMPARED: usize = 4096;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The segment's file.
    pub file: PathBuf,
    /// The line, from 1; 0 when it is about the file as such.
    pub line: u64,
    /// The number of the record, where one is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What was found in a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Segments that were read.
    pub segments: u64,
    /// Number of the first record that is there, and of the last.
    pub first: u64,
    /// The last record's number.
    pub last: u64,
    /// Signatures that are good.
    pub seals: u64,
    /// The last record under a good signature.
    pub sealed: u64,
    /// Thumbprints of the keys that made good signatures.
    pub keys: Vec<String>,
    /// The last hash. Kept elsewhere, it shows later whether the end was cut off.
    pub hash: String,
    /// Records that the gateway says were lost for want of room.
    pub lost: u64,
    /// Records that the gateway says were left out by sampling, by route.
    pub sampled: BTreeMap<String, u64>,
    /// Records that the gateway says a sink will never have, by sink.
    pub undelivered: BTreeMap<String, u64>,
    /// Records that a sink has, by its own account, and that a crash of the machine took from here.
    pub ahead: BTreeMap<String, u64>,
    /// Some process writes it at the moment.
    pub open: bool,
    /// What is wrong, at most 100.
    pub findings: Vec<Finding>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn sound(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            write!(f, "{}", finding.file.display())?;
            if finding.line > 0 {
                write!(f, ":{}", finding.line)?;
            }
            match finding.record {
                Some(record) => writeln!(f, ": record {record}: {}", finding.what)?,
                None => writeln!(f, ": {}", finding.what)?,
            }
        }
        if self.findings.len() == MAX_FINDINGS {
            writeln!(f, "… and perhaps more")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let verdict = if self.sound() {
            "nothing was changed"
        } else {
            "CHANGED, or not whole"
        };
        let Self {
            segments,
            first,
            last,
            seals,
            sealed,
            ..
        } = self;
        writeln!(
            f,
            "{verdict}: records {first} to {last}, {segments} segment{}; {seals} good signature{}, up to record {sealed}",
            plural(*segments),
            plural(*seals)
        )?;
        writeln!(f, "last hash: {}", self.hash)
    }
}

const fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Verifies a folder. With keys, signatures are verified too, and everything has to be signed but
/// what a running gateway wrote last. `progress` hears of bytes read and in all.
///
/// # Errors
/// The system's, when something cannot be read.
pub fn verify(
    folder: &Path,
    keys: &[PublicKey],
    mut progress: impl FnMut(u64, u64),
) -> io::Result<Report> {
    let written = written(folder)?;
    let segments = scan::segments(folder)?;
    let total = segments.iter().map(|segment| segment.bytes).sum();
    let mut verifier = Verifier {
        keys: keys
            .iter()
            .map(|key| (key.thumbprint(), key.clone()))
            .collect(),
        asked: !keys.is_empty(),
        report: Report {
            open: written,
            ..Report::default()
        },
        file: PathBuf::new(),
        chain: None,
        id: None,
        records: 0,
        pending: Vec::new(),
        missing: None,
        unsigned: None,
        dropped: None,
        absent: Absent::default(),
    };
    if segments.is_empty() {
        verifier.file = folder.to_owned();
        verifier.find(0, None, "there are no segments");
    }
    let mut read = 0;
    let count = segments.len();
    for (index, segment) in segments.iter().enumerate() {
        let gap = index
            .checked_sub(1)
            .and_then(|before| segments.get(before))
            .map(|before| before.number);
        verifier.segment(segment, gap, index + 1 == count, |bytes| {
            progress(read + bytes, total);
        })?;
        read += segment.bytes;
    }
    Ok(verifier.end())
}

/// Whether a process holds the lock.
fn written(folder: &Path) -> io::Result<bool> {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

struct Verifier {
    keys: HashMap<String, PublicKey>,
    /// Signatures are to be verified.
    asked: bool,
    report: Report,
    file: PathBuf,
    /// `None` before the first segment.
    chain: Option<Chain>,
    id: Option<String>,
    /// The number of the last record that a block closed.
    records: u64,
    /// Lines and checksums since the last line of the ledger's own.
    pending: Vec<(u64, String)>,
    /// The first segment that is there begins after these, of which a note must tell.
    missing: Option<(u64, PathBuf)>,
    /// Where the first record stands that no good signature covers, and when its block was closed.
    unsigned: Option<(PathBuf, u64, u64, String)>,
    /// A note of removed segments that awaits a signature.
    dropped: Option<String>,
    /// Notes of other kinds that do.
    absent: Absent,
}

/// Records that are not where somebody would look for them.
#[derive(Debug, Default)]
struct Absent {
    lost: u64,
    sampled: BTreeMap<String, u64>,
    undelivered: BTreeMap<String, u64>,
    ahead: BTreeMap<String, u64>,
}

impl Absent {
    fn add(&mut self, note: &Note) {
        self.lost = self.lost.saturating_add(note.lost);
        for (route, count) in &note.sampled {
            add(&mut self.sampled, route, *count);
        }
        for (counts, what) in [
            (&mut self.undelivered, &note.undelivered),
            (&mut self.ahead, &note.ahead),
        ] {
            if let Some(what) = what {
                let (first, last) = what.records;
                let count = last.saturating_sub(first).saturating_add(1);
                add(counts, &what.sink, count);
            }
        }
    }
}

fn add(counts: &mut BTreeMap<String, u64>, name: &str, count: u64) {
    let sum = counts.entry(name.to_owned()).or_default();
    *sum = sum.saturating_add(count);
}

impl Verifier {
    fn find(&mut self, line: u64, record: Option<u64>, what: impl Into<String>) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding {
                file: self.file.clone(),
                line,
                record,
                what: what.into(),
            });
        }
    }

    fn segment(
        &mut self,
        segment: &Segment,
        before: Option<u64>,
        last: bool,
        mut progress: impl FnMut(u64),
    ) -> io::Result<()> {
        self.file.clone_from(&segment.path);
        self.report.segments += 1;
        match before {
            Some(before) if segment.number != before + 1 => {
                let what = format!("segment {} is missing before it", segment.number - 1);
                self.find(0, None, what);
            }
            None if segment.number > 1 => {
                self.missing = Some((segment.number - 1, segment.path.clone()));
            }
            Some(_) | None => {}
        }
        let mut lines = Lines::open(&segment.path)?;
        loop {
            let next = lines.next()?;
            if lines.number % 1024 == 0 {
                progress(lines.read);
            }
            let own = (next == Next::Line)
                .then(|| lines::read(lines.text()))
                .flatten();
            match next {
                Next::End => break,
                Next::Torn if last => {
                    self.report.notes.push(format!(
                        "{}:{}: a line was begun and not ended",
                        segment.path.display(),
                        lines.number
                    ));
                    break;
                }
                Next::Torn => {
                    self.find(
                        lines.number,
                        None,
                        "the segment ends in the midst of a line",
                    );
                    break;
                }
                Next::TooLong => {
                    self.find(lines.number, None, "the line is too long");
                    break;
                }
                Next::Line if lines.number == 1 => self.opening(segment.number, own),
                Next::Line => match own {
                    Some(own) => self.own(lines.number, &own),
                    None => {
                        if let Some(chain) = &mut self.chain {
                            chain.feed(&lines.line);
                        }
                        self.pending
                            .push((lines.number, lines::checksum(&lines.line)));
                    }
                },
            }
        }
        if lines.number == 0 {
            self.find(0, None, "the segment is empty");
        }
        progress(lines.read);
        let pending = self.pending.len();
        match self.pending.first() {
            Some(_) if last && self.report.open => self
                .report
                .notes
                .push(format!("{pending} lines at the end are just being written")),
            Some((line, _)) => {
                let (line, record) = (*line, self.records + 1);
                self.find(
                    line,
                    Some(record),
                    format!("{pending} lines at the end belong to no block: the process ended in the midst, or the end was cut off"),
                );
            }
            None => {}
        }
        if last {
            self.records += u64::try_from(pending).unwrap_or(u64::MAX);
        }
        self.pending.clear();
        Ok(())
    }

    fn opening(&mut self, number: u64, own: Option<Read<'_>>) {
        let Some((opening, read)) = own.as_ref().and_then(|read| match &read.own {
            Own::Ledger(opening) => Some((opening.clone(), read)),
            Own::Block(_) | Own::Seal(_) | Own::Dropped(_) | Own::Note(_) => None,
        }) else {
            self.find(
                1,
                None,
                "the first line opens no segment: it was changed, or is missing",
            );
            // What follows can be told from nothing.
            self.chain.get_or_insert(Chain::after(lines::NOTHING));
            return;
        };
        let previous = lines::unhex(opening.previous.as_bytes()).unwrap_or(lines::NOTHING);
        self.goes_on(&opening, &previous, number);
        let mut chain = Chain::after(previous);
        if chain.close(read.before_hash) != read.hash {
            self.find(
                1,
                None,
                "the first line was changed: its hash is another one",
            );
            chain = Chain::after(read.hash);
        }
        self.chain = Some(chain);
        if let Some(why) = &opening.broken {
            self.report.notes.push(format!(
                "{}: the gateway found the segment before broken when it began this one: {why}",
                self.file.display()
            ));
        }
    }

    /// Whether a segment is the one that follows.
    fn goes_on(&mut self, opening: &Opening, previous: &Hash, number: u64) {
        if opening.segment != number {
            let what = format!("this is segment {}, under another name", opening.segment);
            self.find(1, None, what);
        }
        match &self.id {
            Some(id) if *id != opening.id => {
                self.find(1, None, "this segment is of another ledger");
            }
            Some(_) | None => self.id = Some(opening.id.clone()),
        }
        match &self.chain {
            Some(chain) if chain.hash() != *previous => self.find(
                1,
                None,
                "it goes on from another hash than the segment before ends with: the end of that one was cut off, or a segment is missing",
            ),
            Some(_) => {}
            None if number == 1 && *previous != lines::NOTHING => {
                self.find(1, None, "the first segment goes on from something");
            }
            None => {}
        }
        if self.chain.is_none() {
            self.report.first = opening.next;
            self.records = opening.next.saturating_sub(1);
            self.report.sealed = self.records;
        } else if opening.next != self.records + 1 {
            let what = format!(
                "it begins with record {}, the segment before ends with {}",
                opening.next, self.records
            );
            self.find(1, None, what);
            self.records = opening.next.saturating_sub(1);
        }
    }

    fn own(&mut self, line: u64, read: &Read<'_>) {
        let mut chain = self
            .chain
            .take()
            .unwrap_or_else(|| Chain::after(lines::NOTHING));
        let signed = match &read.own {
            Own::Seal(_) => chain.to_sign(read.before_signature()),
            Own::Ledger(_) | Own::Block(_) | Own::Dropped(_) | Own::Note(_) => Vec::new(),
        };
        let sound = chain.close(read.before_hash) == read.hash;
        if !sound {
            chain = Chain::after(read.hash);
        }
        self.chain = Some(chain);
        match &read.own {
            Own::Block(block) => self.block(line, block, sound),
            own @ (Own::Ledger(_) | Own::Seal(_) | Own::Dropped(_) | Own::Note(_)) => {
                if let Some((first, _)) = self.pending.first().cloned() {
                    self.pending.clear();
                    self.find(
                        first,
                        Some(self.records + 1),
                        "records that belong to no block",
                    );
                } else if !sound {
                    self.find(
                        line,
                        None,
                        "the line was changed, or lines before it were: its hash is another one",
                    );
                }
                match own {
                    Own::Seal(seal) => self.seal(line, seal, &signed),
                    Own::Dropped(dropped) => {
                        let told = self.missing.as_ref().is_some_and(|(number, _)| {
                            (dropped.segments.0..=dropped.segments.1).contains(number)
                        });
                        if told {
                            self.dropped = Some(format!(
                                "what was before record {} was removed on {}, as configured",
                                dropped.last + 1,
                                dropped.time
                            ));
                            if !self.asked {
                                self.told();
                            }
                        }
                    }
                    Own::Note(note) => {
                        self.absent.add(note);
                        if !self.asked {
                            self.vouched();
                        }
                    }
                    Own::Ledger(_) => self.find(line, None, "a segment begins within a segment"),
                    Own::Block(_) => {}
                }
            }
        }
    }

    fn block(&mut self, line: u64, block: &Block, sound: bool) {
        let pending = std::mem::take(&mut self.pending);
        if block.first != self.records + 1 {
            let what = format!(
                "the block begins with record {}, and {} was the last: records are missing",
                block.first, self.records
            );
            self.find(line, Some(self.records + 1), what);
        }
        if self.unsigned.is_none() && block.records > 0 {
            let at = pending.first().map_or(line, |(line, _)| *line);
            self.unsigned = Some((self.file.clone(), at, block.first, block.time.clone()));
        }
        if block.recovered {
            let torn = match block.torn {
                0 => String::new(),
                torn => format!("; {torn} bytes of a further one were lost"),
            };
            self.report.notes.push(format!(
                "{}:{line}: the process ended without closing records {} to {}; the next one did{torn}",
                self.file.display(),
                block.first,
                (block.first + block.records).saturating_sub(1)
            ));
        }
        self.records = (block.first + block.records).saturating_sub(1);
        if sound {
            return;
        }
        let stated: Vec<&str> = block
            .lines
            .as_bytes()
            .chunks(8)
            .map(|digits| str::from_utf8(digits).unwrap_or_default())
            .collect();
        let found = compare(&stated, &pending);
        if found.is_empty() {
            self.find(
                line,
                None,
                "the line was changed, or one of the ledger's own before it is missing: its hash is another one",
            );
        }
        for (at, index, what) in found {
            let record = index.map(|index| block.first + u64::try_from(index).unwrap_or(u64::MAX));
            self.find(at.unwrap_or(line), record, what);
        }
    }

    fn seal(&mut self, line: u64, seal: &Seal, signed: &[u8]) {
        if !self.asked {
            return;
        }
        let Some(key) = self.keys.get(&seal.kid) else {
            let what = format!("signed by a key that was not given: {}", seal.kid);
            return self.find(line, None, what);
        };
        if !key.verifies(signed, &seal.signature) {
            return self.find(line, None, "the signature is wrong");
        }
        if seal.records != self.records {
            let what = format!(
                "signs {} records, and there are {}",
                seal.records, self.records
            );
            return self.find(line, None, what);
        }
        self.report.seals += 1;
        self.report.sealed = self.records;
        self.unsigned = None;
        self.told();
        self.vouched();
        if !self.report.keys.contains(&seal.kid) {
            self.report.keys.push(seal.kid.clone());
        }
        if let Some(x) = &seal.next_key {
            // The key before vouches for it.
            if let Some(next) = PublicKey::from_x(x) {
                self.keys.insert(next.thumbprint(), next);
            }
        }
    }

    /// The segments that are missing were removed by the gateway, which said so.
    fn told(&mut self) {
        if let Some(note) = self.dropped.take() {
            self.missing = None;
            self.report.notes.push(note);
        }
    }

    /// What notes say counts: a signature covers them.
    fn vouched(&mut self) {
        let absent = std::mem::take(&mut self.absent);
        let report = &mut self.report;
        report.lost = report.lost.saturating_add(absent.lost);
        for (counts, more) in [
            (&mut report.sampled, absent.sampled),
            (&mut report.undelivered, absent.undelivered),
            (&mut report.ahead, absent.ahead),
        ] {
            for (name, count) in more {
                add(counts, &name, count);
            }
        }
    }

    /// What the gateway itself says is not here.
    fn absences(&mut self) {
        let report = &mut self.report;
        if report.lost > 0 {
            let lost = report.lost;
            let text =
                format!("the gateway says that {lost} more records were lost for want of room");
            report.notes.push(text);
        }
        for (route, count) in &report.sampled {
            report.notes.push(format!(
                "the gateway says that {count} more records of route {route} were left out by sampling"
            ));
        }
        for (sink, count) in &report.undelivered {
            report.notes.push(format!(
                "the gateway says that {count} of these records were given up for the sink {sink}"
            ));
        }
        for (sink, count) in &report.ahead {
            report.notes.push(format!(
                "the gateway says that the sink {sink} has {count} more records, which a crash of the machine \
                 took from here"
            ));
        }
    }

    fn end(mut self) -> Report {
        self.absences();
        if let Some((number, file)) = self.missing.take() {
            self.file = file;
            self.find(
                0,
                None,
                format!(
                    "segments up to {number} are missing, and nothing says that they were removed"
                ),
            );
        }
        self.report.last = self.records;
        if let Some(chain) = &self.chain {
            self.report.hash = lines::hex(&chain.hash());
        }
        if !self.asked {
            self.report
                .notes
                .push("no key was given: signatures were not verified".to_owned());
            return self.report;
        }
        if let Some((file, line, record, closed)) = self.unsigned.take() {
            let last = self.records;
            // A lock that is held proves nothing, for anybody can hold it: it excuses only as much as
            // a gateway may leave unsigned.
            let fresh = OffsetDateTime::parse(&closed, &Rfc3339).is_ok_and(|closed| {
                let age = OffsetDateTime::from(clock::now()) - closed;
                age.abs() <= UNSIGNED
            });
            if self.report.open && fresh && self.report.seals > 0 {
                self.report.notes.push(format!(
                    "records {record} to {last} are not signed yet: the gateway is running"
                ));
            } else {
                self.file = file;
                self.find(
                    line,
                    Some(record),
                    format!("records {record} to {last} are not signed: the gateway was killed, or signatures were removed"),
                );
            }
        }
        self.report
    }
}

/// What became of records: by line and index in the block.
type Difference = (Option<u64>, Option<usize>, String);

/// Compares what a block says with what stands before it.
fn compare(stated: &[&str], found: &[(u64, String)]) -> Vec<Difference> {
    let same = |(one, other): &(&&str, &(u64, String))| **one == other.1;
    let begin = stated.iter().zip(found).take_while(same).count();
    let most = stated.len().min(found.len()) - begin;
    let end = stated
        .iter()
        .rev()
        .zip(found.iter().rev())
        .take(most)
        .take_while(same)
        .count();
    let stated_middle = stated.get(begin..stated.len() - end).unwrap_or_default();
    let found_middle = found.get(begin..found.len() - end).unwrap_or_default();
    if stated_middle.is_empty() && found_middle.is_empty() {
        return Vec::new();
    }
    if stated_middle.len().max(found_middle.len()) > MAX_COMPARED {
        let line = found_middle.first().map(|(line, _)| *line);
        return vec![(
            line,
            Some(begin),
            "many records from here on were changed".to_owned(),
        )];
    }
    let kept = common(stated_middle, found_middle);
    let mut differences = Vec::new();
    let (mut s, mut f) = (0, 0);
    let ends = [(stated_middle.len(), found_middle.len())];
    for (next_s, next_f) in kept.into_iter().chain(ends) {
        while s < next_s && f < next_f {
            let line = found_middle.get(f).map(|(line, _)| *line);
            differences.push((line, Some(begin + s), "was changed".to_owned()));
            s += 1;
            f += 1;
        }
        for index in s..next_s {
            let text = stated_middle.get(index).copied().unwrap_or_default();
            let moved = found_middle.iter().find(|(_, other)| other == text);
            let what = match moved {
                Some((line, _)) => format!("was moved: it stands in line {line}"),
                None => "is missing".to_owned(),
            };
            // Where it should stand.
            let line = found.get(begin + f).map(|(line, _)| *line);
            differences.push((line, Some(begin + index), what));
        }
        for index in f..next_f {
            let Some((line, text)) = found_middle.get(index) else {
                continue;
            };
            // What was moved was told where it is missed.
            let missed = stated_middle.get(s..).unwrap_or_default();
            let told = differences
                .iter()
                .any(|(_, _, what)| *what == format!("was moved: it stands in line {line}"));
            if told || missed.contains(&text.as_str()) {
                continue;
            }
            let what = if stated.contains(&text.as_str()) {
                "is there twice"
            } else {
                "was added"
            };
            let original = stated.iter().position(|other| other == text);
            differences.push((Some(*line), original, what.to_owned()));
        }
        (s, f) = (next_s + 1, next_f + 1);
    }
    differences
}

/// Indices of a longest common subsequence.
fn common(stated: &[&str], found: &[(u64, String)]) -> Vec<(usize, usize)> {
    let width = found.len() + 1;
    let mut lengths = vec![0_u16; (stated.len() + 1) * width];
    let at = |lengths: &[u16], s: usize, f: usize| lengths.get(s * width + f).copied().unwrap_or(0);
    for (s, text) in stated.iter().enumerate().rev() {
        for (f, (_, other)) in found.iter().enumerate().rev() {
            let longest = if text == other {
                at(&lengths, s + 1, f + 1) + 1
            } else {
                at(&lengths, s + 1, f).max(at(&lengths, s, f + 1))
            };
            if let Some(cell) = lengths.get_mut(s * width + f) {
                *cell = longest;
            }
        }
    }
    let (mut s, mut f) = (0, 0);
    let mut kept = Vec::new();
    while let (Some(text), Some((_, other))) = (stated.get(s), found.get(f)) {
        if text == other {
            kept.push((s, f));
            s += 1;
            f += 1;
        } else if at(&lengths, s + 1, f) >= at(&lengths, s, f + 1) {
            s += 1;
        } else {
            f += 1;
        }
    }
    kept
}
