//! One thread reads, the others judge. Lines go in batches; what waits is bounded, and so is what is kept.

use std::io::{self, IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::ReplayArgs;
use super::judges::{Judge, Judges};
use super::sieve::{Sieve, name_of};
use super::tally::{Change, Example, Kept, Kind, Side, Tally, Terms};
use super::thousands;
use crate::audit::read::{Entry, Kind as EntryKind, Line, Records};
use crate::authz::replay::{Judgement, Meant};
use crate::authz::{InputDocument, Machines};
use crate::policy::scenario::Unanswered;

/// Bytes of lines that go to a thread at once.
const BATCH: usize = 256 << 10;
/// The same, in lines.
const BATCH_LINES: usize = 512;
/// The stack of a thread that evaluates: that of live workers, and some.
const STACK: usize = 4 << 20;
/// When and how often is told how far it is.
const PATIENCE: Duration = Duration::from_secs(1);
const TELL: Duration = Duration::from_millis(200);
/// Cells of the bar.
const BAR: u64 = 24;
/// Policies that had no answer of their own then: nothing can be compared.
const FAULTS: [&str; 4] = [
    "policy.budget",
    "policy.panic",
    "policy.unavailable",
    "policy.body",
];

/// Lines of one file.
struct Batch {
    /// Of the first line, among all lines; the others follow.
    number: u64,
    file: Arc<Path>,
    bytes: Vec<u8>,
    /// Where each line is, and its number in the file.
    lines: Vec<(Range<usize>, u64)>,
}

/// How far it is, for whoever watches.
#[derive(Default)]
struct Gauge {
    read: AtomicU64,
    total: AtomicU64,
    judged: AtomicU64,
}

/// Has all records judged.
pub(super) fn replay(
    records: Records,
    judges: &Judges,
    sieve: &Sieve,
    args: &ReplayArgs,
    terms: Terms,
) -> Result<Tally, Unanswered> {
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let (sender, receiver) = sync_channel::<Batch>(threads * 4);
    let receiver = Mutex::new(receiver);
    let gauge = Gauge::default();
    let (done, finished) = channel::<()>();
    let tallies = thread::scope(|scope| {
        let (receiver, gauge) = (&receiver, &gauge);
        let mut workers = Vec::new();
        for _ in 0..threads {
            let done = done.clone();
            let work = move || {
                let tally = worked(receiver, judges, sieve, gauge, terms);
                drop(done);
                tally
            };
            let worker = thread::Builder::new().stack_size(STACK);
            workers.push(worker.spawn_scoped(scope, work));
        }
        drop(done);
        let limit = args.limit;
        let reader = scope.spawn(move || read(records, &sender, sieve, limit, gauge));
        watch(&finished, gauge);
        let mut tallies = Vec::new();
        for worker in workers {
            let worker = worker.map_err(|error| format!("a thread did not start: {error}"))?;
            let tally = worker
                .join()
                .map_err(|_| "a thread that evaluates panicked".to_owned())?;
            tallies.push(tally);
        }
        let read = reader
            .join()
            .map_err(|_| "the thread that reads panicked".to_owned())?;
        tallies.push(read);
        Ok(tallies)
    });
    let tallies: Vec<Tally> = tallies.map_err(Unanswered::Question)?;
    let mut all = Tally::default();
    for tally in tallies {
        all.merge(tally, terms);
    }
    Ok(all)
}

/// Reads everything into batches. What cannot be read is counted here.
fn read(
    mut records: Records,
    to: &SyncSender<Batch>,
    sieve: &Sieve,
    limit: Option<u64>,
    gauge: &Gauge,
) -> Tally {
    let mut tally = Tally::default();
    let mut batch: Option<Batch> = None;
    let mut taken = 0;
    let total = records.progress().total;
    gauge.total.store(total.unwrap_or(0), Ordering::Relaxed);
    while let Some(next) = records.next() {
        let Line { text, place } = match next {
            Ok(line) => line,
            Err(broken) => {
                let at = || broken.place.to_string();
                tally.skip(&broken.fault.to_string(), tally.read, at);
                continue;
            }
        };
        tally.read += 1;
        if let Some(limit) = limit {
            if taken >= limit {
                tally.read -= 1;
                break;
            }
            // Which ones are the first is known here only.
            taken += u64::from(Entry::of(text).is_ok_and(|entry| sieve.takes(&entry)));
        }
        let full = batch.as_ref().is_some_and(|batch| {
            batch.bytes.len() + text.len() > BATCH
                || batch.lines.len() >= BATCH_LINES
                || batch.file != place.file
        });
        if full
            && let Some(full) = batch.take()
            && to.send(full).is_err()
        {
            return tally;
        }
        let open = batch.get_or_insert_with(|| Batch {
            number: tally.read,
            file: place.file,
            bytes: Vec::with_capacity(BATCH),
            lines: Vec::new(),
        });
        let from = open.bytes.len();
        open.bytes.extend_from_slice(text);
        open.lines.push((from..open.bytes.len(), place.line));
        if full {
            gauge.read.store(records.progress().read, Ordering::Relaxed);
        }
    }
    if let Some(last) = batch {
        let _ = to.send(last);
    }
    tally
}

fn worked(
    batches: &Mutex<Receiver<Batch>>,
    judges: &Judges,
    sieve: &Sieve,
    gauge: &Gauge,
    terms: Terms,
) -> Tally {
    let mut worker = Worker {
        judges,
        sieve,
        terms,
        machines: Machines::default(),
        tally: Tally::default(),
    };
    loop {
        // Held while it waits: the others would wait as well.
        let next = batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(batch) = next else {
            return worker.tally;
        };
        for (number, (range, line)) in (batch.number..).zip(batch.lines) {
            let text = batch.bytes.get(range).unwrap_or_default();
            worker.line(text, number, &|| format!("{}:{line}", batch.file.display()));
            gauge.judged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Worker<'w> {
    judges: &'w Judges,
    sieve: &'w Sieve,
    terms: Terms,
    machines: Machines,
    tally: Tally,
}

/// What a record says of the answer.
struct Was<'e> {
    /// Whether the request went through, where the record says so.
    decided: Option<bool>,
    /// Of the record, where no answer tells.
    reason: Option<String>,
    /// As it stands in the record; `None` when there was none, or it is hidden.
    answer: Option<&'e str>,
    hidden: bool,
    /// A mask rule took the reason.
    reason_hidden: bool,
}

impl<'w> Worker<'w> {
    fn line(&mut self, text: &[u8], number: u64, place: &dyn Fn() -> String) {
        let entry = match Entry::of(text) {
            Ok(entry) => entry,
            Err(why) => return self.tally.skip(&why.to_string(), number, place),
        };
        if !self.sieve.takes(&entry) {
            return;
        }
        self.tally.chosen += 1;
        if let Err(cause) = self.judged(&entry, number, place) {
            self.tally.leave(&cause, number, place);
        }
    }

    /// Judges a record, or tells why it is not.
    fn judged(
        &mut self,
        entry: &Entry<'_>,
        number: u64,
        place: &dyn Fn() -> String,
    ) -> Result<(), String> {
        let judge = self.judge_of(entry)?;
        let input = input(entry)?;
        let pointers = entry
            .hidden()
            .map_err(|_| "what was masked cannot be read".to_owned())?;
        if let Some(read) = judge.policy.reads_any(pointers.iter().map(String::as_str)) {
            return Err(format!(
                "cannot be told: `{}` is masked, and the policy {} reads it",
                pointed(read),
                judge.name
            ));
        }
        let was = was(entry, &pointers)?;
        let at = entry.received_at_ns().unwrap_or(0);
        let id = entry.request_id().unwrap_or_default();
        let now = judge
            .policy
            .judge_recorded(&self.machines, input, at, &id)
            .map_err(|error| error.to_string())?;
        self.tally.retried += u64::from(now.attempts > 1);
        let written = was.answer.is_some();
        let (change, before, after) = compared(was, &now, judge)?;
        self.tally.compared += u64::from(written);
        self.tally.equal += u64::from(written && change == Change::Same);
        let route = match entry.kind {
            EntryKind::Record(_) => entry.route(),
            EntryKind::Opa => entry.path(),
        };
        let kind = Kind {
            policy: judge.name.clone(),
            route: route.map_or_else(|| "-".to_owned(), Into::into),
            was: change.was(&before, &after),
            now: change.now(&before, &after),
            change,
        };
        let caller = || name_of(entry.caller());
        let example = |keeps: bool| Example {
            number,
            place: place(),
            time: entry.time().unwrap_or_default().into_owned(),
            request: request(entry),
            caller: caller(),
            request_id: id.to_string(),
            decision_id: entry.decision_id().map(Into::into),
            kept: keeps.then(|| Kept {
                rule: judge.entrypoint.clone(),
                ours: judge.policy.document() == Some(InputDocument::Portcullis),
                input: input.to_owned(),
                was: before.clone(),
                now: after.clone(),
            }),
        };
        self.tally.judge(kind, caller, number, self.terms, example);
        Ok(())
    }

    /// Who judges what this record tells of.
    fn judge_of(&mut self, entry: &Entry<'_>) -> Result<&'w Judge, String> {
        let judges = self.judges;
        if entry.kind == EntryKind::Opa {
            let path = entry.path().unwrap_or_default();
            let none = || format!("no policy of {} has the rule `{path}`", judges.from);
            return judges.of_rule(&path).ok_or_else(none);
        }
        let (Some(by), Some(_)) = (entry.policy(), entry.decision()) else {
            let code = entry.refusal().unwrap_or_else(|| "no answer".to_owned());
            return Err(format!("no policy was asked: refused before ({code})"));
        };
        if by.name == "public" {
            return Err("an open route: no policy decides there".to_owned());
        }
        self.tally.by_candidates += u64::from(by.candidate.is_some());
        let none = || format!("the policy {} is not in {}", by.name, judges.from);
        judges.of_policy(&by.name).ok_or_else(none)
    }
}

fn input<'e>(entry: &Entry<'e>) -> Result<&'e str, String> {
    entry.input.ok_or_else(|| match entry.input_left_out() {
        Some(why) => format!("the input was left out: {why}"),
        None if entry.kind == EntryKind::Record(1) => {
            "no input: records of version 1 have none".to_owned()
        }
        None => "no input: `audit.input: none`, or a mask took it".to_owned(),
    })
}

/// What the record says of the answer.
fn was<'e>(entry: &Entry<'e>, hidden: &[String]) -> Result<Was<'e>, String> {
    let ours = entry.kind != EntryKind::Opa;
    let member = if ours { "/answer" } else { "/result" };
    let reason_hidden = ours && hidden.iter().any(|pointer| pointer == "/reason");
    let hidden = hidden.iter().any(|pointer| pointer.starts_with(member))
        || entry.answer_left_out().is_some();
    let decision = entry.decision();
    let reason = entry.reason().map(std::borrow::Cow::into_owned);
    if ours && entry.answer.is_none() && !hidden {
        let fault = FAULTS
            .iter()
            .find(|fault| reason.as_deref() == Some(**fault));
        if let Some(fault) = fault {
            return Err(format!("nothing to compare with: then it was {fault}"));
        }
    }
    if !ours && entry.error().is_some() {
        return Err("nothing to compare with: then it was an error".to_owned());
    }
    let decided = ours.then(|| decision.as_deref() == Some("allow"));
    // What refused it later says nothing of the policy.
    let of_policy = !(decided == Some(true) && entry.refusal().is_some());
    let undefined = (!ours && entry.answer.is_none()).then(|| "policy.undefined".to_owned());
    Ok(Was {
        decided,
        reason: reason.filter(|_| of_policy).or(undefined),
        answer: entry.answer.filter(|_| !hidden),
        hidden,
        reason_hidden,
    })
}

/// How the answers differ, and both of them.
fn compared(was: Was<'_>, now: &Judgement, judge: &Judge) -> Result<(Change, Side, Side), String> {
    let after = Side {
        allow: now.allow,
        reason: now.reason.clone(),
        answer: now.answer.as_deref().map(str::to_owned),
    };
    if was.answer.is_some() && was.answer == now.answer.as_deref() {
        return Ok((Change::Same, after.clone(), after));
    }
    let before = match was.answer {
        Some(written) => {
            let Meant {
                allow,
                reason,
                canonical,
            } = judge
                .policy
                .meaning(written)
                .map_err(|error| format!("the recorded answer cannot be read: {error}"))?;
            // A yes that asked for what no policy may change of a request was a no.
            let (allow, reason) = match was.decided {
                Some(false) if allow => (false, was.reason),
                Some(_) | None => (allow, reason),
            };
            Side {
                allow,
                reason,
                answer: Some(canonical.to_string()),
            }
        }
        None => Side {
            allow: was.decided == Some(true),
            reason: was.reason,
            answer: None,
        },
    };
    let change = match (before.allow, after.allow) {
        (false, true) => Change::Gain,
        (true, false) => Change::Loss,
        // Without an answer a yes tells no reason for sure.
        _ if before.reason != after.reason
            && !was.reason_hidden
            && !(was.hidden && after.allow) =>
        {
            Change::Reason
        }
        _ if !was.hidden && before.answer != after.answer => Change::Answer,
        _ => Change::Same,
    };
    Ok((change, before, after))
}

impl Change {
    /// What is shown of the answer then.
    fn was(self, before: &Side, after: &Side) -> String {
        match self {
            Self::Answer => differing(before, after),
            Self::Gain | Self::Loss | Self::Reason | Self::Same => before.shown(),
        }
    }

    /// What is shown of the answer now.
    fn now(self, _before: &Side, after: &Side) -> String {
        match self {
            Self::Answer => "another value".to_owned(),
            Self::Gain | Self::Loss | Self::Reason | Self::Same => after.shown(),
        }
    }
}

/// The members that differ.
fn differing(before: &Side, after: &Side) -> String {
    let members = |side: &Side| {
        let answer = side.answer.as_deref().unwrap_or("null");
        match serde_json::from_str(answer) {
            Ok(serde_json::Value::Object(members)) => members,
            Ok(_) | Err(_) => serde_json::Map::new(),
        }
    };
    let (before, after) = (members(before), members(after));
    let mut names: Vec<&str> = before
        .iter()
        .filter(|(name, value)| after.get(*name) != Some(*value))
        .map(|(name, _)| name.as_str())
        .chain(
            after
                .keys()
                .filter(|name| !before.contains_key(*name))
                .map(String::as_str),
        )
        .collect();
    names.sort_unstable();
    if names.is_empty() {
        "the answer".to_owned()
    } else {
        names.join(", ")
    }
}

/// A pointer as a path, without the numbers of elements: many records have the same.
fn pointed(pointer: &str) -> String {
    let tokens = pointer.split('/').skip(1);
    let plain = |token: &str| token.replace("~1", "/").replace("~0", "~");
    let names = tokens.filter(|token| token.parse::<usize>().is_err());
    names.map(plain).collect::<Vec<_>>().join(".")
}

fn request(entry: &Entry<'_>) -> String {
    let (method, path) = (entry.method(), entry.path());
    match (method, path) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        (None, Some(path)) => path.into_owned(),
        (_, None) => "-".to_owned(),
    }
}

/// Tells how far it is until all threads are done.
fn watch(finished: &Receiver<()>, gauge: &Gauge) {
    let begun = Instant::now();
    let shown = io::stderr().is_terminal();
    let mut told = false;
    // Nobody sends; the last thread that ends hangs up.
    while finished.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
        if shown && begun.elapsed() > PATIENCE {
            told = true;
            let bar = bar(gauge, begun.elapsed());
            let _ = write!(io::stderr(), "\r\x1b[K{bar}");
        }
    }
    if told {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

/// `replaying ██████▌░░░  53 %  412,000 records, 61,000/s, 6 s left`.
fn bar(gauge: &Gauge, elapsed: Duration) -> String {
    let judged = gauge.judged.load(Ordering::Relaxed);
    let (read, total) = (
        gauge.read.load(Ordering::Relaxed),
        gauge.total.load(Ordering::Relaxed),
    );
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = judged.saturating_mul(1000) / millis;
    let pace = format!("{} records, {}/s", thousands(judged), thousands(rate));
    if total == 0 {
        return format!("replaying  {pace}");
    }
    let read = read.min(total);
    let cells = read.saturating_mul(BAR) / total;
    let bar: String = (0..BAR)
        .map(|cell| if cell < cells { '█' } else { '░' })
        .collect();
    let percent = read.saturating_mul(100) / total;
    let left = match read {
        0 => String::new(),
        read => {
            let left = millis.saturating_mul(total - read) / read / 1000;
            format!(", {left} s left")
        }
    };
    format!("replaying {bar} {percent:3} %  {pace}{left}")
}
