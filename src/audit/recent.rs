//! The last records, kept in memory for whoever looks at what happens now.
//!
//! Lines come here as they go to the sink: what was masked or dropped is so here, too. Each has a
//! number, from 1 on, that rises by one and means something within one process only. What is kept is
//! bounded twice, by the number of records and by their bytes; the oldest go first. One ring serves
//! all configurations of a process, so that a reload hides nothing.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memchr::memmem::Finder;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::read::Entry;
use super::stage::{Passed, Place, Stage};

/// How many records are kept unless the configuration says otherwise.
pub(super) const USUAL: usize = 4096;

/// Most records that may be kept.
pub(super) const LARGEST: usize = 65_536;

/// Most bytes of them.
const MAX_BYTES: usize = 16 << 20;

/// The room of a block, in bytes.
const BLOCK: usize = 64 << 10;

/// Longest id that is looked for, in bytes.
pub const MAX_ID: usize = 64;

/// The last records of a process.
#[derive(Debug)]
pub struct Recent {
    /// Tells one process from the next: numbers begin anew with it.
    instance: String,
    ring: Mutex<Ring>,
    news: Notify,
}

#[derive(Debug)]
struct Ring {
    /// The most records; 0 keeps none.
    most: usize,
    /// The number that the next record gets.
    next: u64,
    /// Full blocks, the oldest first.
    blocks: VecDeque<Arc<Block>>,
    /// The one that is being filled.
    open: Block,
    /// Of the full blocks.
    bytes: usize,
    /// There is something that nobody was told of.
    news: bool,
}

/// Lines one behind the other.
#[derive(Debug, Default, Clone)]
struct Block {
    /// The number of the first.
    first: u64,
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

/// A record that was kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its number.
    pub seq: u64,
    block: Arc<Block>,
    at: Range<usize>,
}

impl Kept {
    /// The record: a line of JSON without its line break.
    pub fn line(&self) -> &[u8] {
        self.block.text.get(self.at.clone()).unwrap_or_default()
    }
}

/// Records that were found.
#[derive(Debug, Default)]
pub struct Found {
    /// The oldest first.
    pub records: Vec<Kept>,
    /// The number of the last record that was looked at: where to go on.
    pub next: u64,
    /// How many records have left the ring since the number that was asked behind.
    pub missed: u64,
}

/// Which records are wanted. What is `None` does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The route's name.
    pub route: Option<String>,
    /// The subject or the client of the caller.
    pub caller: Option<String>,
    /// `allow`, `deny`, or `none` where it did not come to a decision.
    pub decision: Option<String>,
    /// The code of the refusal or the reason.
    pub code: Option<String>,
    /// Status of the answer: first and last.
    pub status: Option<(u16, u16)>,
    /// The policy's name.
    pub policy: Option<String>,
}

/// What filters look at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Seen<'l> {
    #[serde(borrow)]
    route: Option<Cow<'l, str>>,
    #[serde(borrow)]
    caller: Option<SeenCaller<'l>>,
    #[serde(borrow)]
    decision: Option<Cow<'l, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'l, str>>,
    #[serde(borrow)]
    refusal: Option<SeenRefusal<'l>>,
    status: Option<u16>,
    #[serde(borrow)]
    policy: Option<SeenPolicy<'l>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeenCaller<'l> {
    #[serde(borrow)]
    subject: Option<Cow<'l, str>>,
    #[serde(borrow)]
    client: Option<Cow<'l, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeenRefusal<'l> {
    #[serde(borrow)]
    code: Option<Cow<'l, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeenPolicy<'l> {
    #[serde(borrow)]
    name: Option<Cow<'l, str>>,
}

impl Filter {
    /// Reads `403` or `4xx`.
    ///
    /// # Errors
    /// How it has to be written.
    pub fn statuses(text: &str) -> Result<(u16, u16), &'static str> {
        let wrong = "a status is written `403` or `4xx`";
        let range = match text.strip_suffix("xx") {
            Some(hundreds) => {
                let hundreds: u16 = hundreds.parse().map_err(|_| wrong)?;
                let first = hundreds.checked_mul(100).ok_or(wrong)?;
                (first, first + 99)
            }
            None => {
                let status = text.parse().map_err(|_| wrong)?;
                (status, status)
            }
        };
        if (100..=999).contains(&range.0) {
            Ok(range)
        } else {
            Err(wrong)
        }
    }

    /// Whether it takes everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this record is wanted. One that cannot be read is not, unless everything is.
    pub fn takes(&self, line: &[u8]) -> bool {
        if self.is_empty() {
            return true;
        }
        let Ok(seen) = serde_json::from_slice::<Seen<'_>>(line) else {
            return false;
        };
        let is = |wanted: &Option<String>, found: &[Option<&str>]| {
            wanted
                .as_deref()
                .is_none_or(|wanted| found.contains(&Some(wanted)))
        };
        let caller = seen.caller.as_ref();
        let subject = caller.and_then(|caller| caller.subject.as_deref());
        let client = caller.and_then(|caller| caller.client.as_deref());
        let code = seen.refusal.as_ref().and_then(|it| it.code.as_deref());
        let policy = seen.policy.as_ref().and_then(|it| it.name.as_deref());
        is(&self.route, &[seen.route.as_deref()])
            && is(&self.caller, &[subject, client])
            && is(&self.decision, &[seen.decision.as_deref().or(Some("none"))])
            && is(&self.code, &[code, seen.reason.as_deref()])
            && is(&self.policy, &[policy])
            && self.status.is_none_or(|(first, last)| {
                seen.status
                    .is_some_and(|status| (first..=last).contains(&status))
            })
    }
}

impl Recent {
    /// A ring for so many records.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            instance: format!("{:016x}", rand::random::<u64>()),
            ring: Mutex::new(Ring {
                most,
                next: 1,
                blocks: VecDeque::new(),
                open: Block {
                    first: 1,
                    ..Block::default()
                },
                bytes: 0,
                news: false,
            }),
            news: Notify::new(),
        })
    }

    /// Takes another bound on the number of records.
    pub(super) fn bound(&self, most: usize) {
        let mut ring = self.locked();
        ring.most = most;
        ring.evict();
    }

    /// A word that no other process has: with another one, numbers begin anew.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Whether records are kept at all.
    pub fn is_on(&self) -> bool {
        self.locked().most > 0
    }

    /// Keeps a line.
    fn push(&self, line: &[u8]) {
        self.locked().push(line);
    }

    /// Tells who waits that there are further lines.
    fn tell(&self) {
        if std::mem::take(&mut self.locked().news) {
            self.news.notify_waiters();
        }
    }

    /// Becomes ready with the next lines. To be made, and enabled, before the ring is looked at.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// The first records behind `after` that the filter takes, at most so many of them and so many
    /// bytes, but one at least. A number that no record has yet is of another process: then the search
    /// begins with the oldest.
    pub fn after(&self, after: u64, filter: &Filter, limit: usize, bytes: usize) -> Found {
        let view = self.view();
        let after = if after >= view.next { 0 } else { after };
        let from = after + 1;
        let mut found = Found {
            records: Vec::new(),
            next: view.next - 1,
            missed: match after {
                0 => 0,
                _ => view.first.saturating_sub(from),
            },
        };
        let mut left = bytes;
        for record in view.records(from.max(view.first)) {
            if !filter.takes(record.line()) {
                continue;
            }
            let size = record.line().len();
            let full = found.records.len() >= limit || (size > left && !found.records.is_empty());
            if full {
                found.next = record.seq - 1;
                break;
            }
            left = left.saturating_sub(size);
            found.records.push(record);
        }
        found
    }

    /// The last records before `before` (or of all) that the filter takes, at most so many of them and
    /// so many bytes, but one at least.
    pub fn last(&self, before: Option<u64>, filter: &Filter, limit: usize, bytes: usize) -> Found {
        let view = self.view();
        let before = before.unwrap_or(view.next).min(view.next);
        let mut found = Found {
            next: view.next - 1,
            ..Found::default()
        };
        let mut left = bytes;
        for record in view.backwards(before) {
            if found.records.len() >= limit {
                break;
            }
            if !filter.takes(record.line()) {
                continue;
            }
            let size = record.line().len();
            if size > left && !found.records.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            found.records.push(record);
        }
        found.records.reverse();
        found
    }

    /// The last record with this decision id or request id.
    pub fn by_id(&self, id: &str) -> Option<Kept> {
        let word = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !word || id.len() > MAX_ID {
            return None;
        }
        let needles = ["decision_id", "request_id"].map(|member| format!("\"{member}\":\"{id}\""));
        let finders = needles.each_ref().map(Finder::new);
        let view = self.view();
        // Of most blocks it is known at once that it is in none of their lines.
        let holds = |text: &[u8]| finders.iter().any(|finder| finder.find(text).is_some());
        let blocks = view.blocks.iter().rev().filter(|block| holds(&block.text));
        blocks
            .flat_map(|block| Block::records(block).rev())
            .filter(|record| record.seq >= view.first && holds(record.line()))
            .find(|record| has_id(record.line(), id))
    }

    fn view(&self) -> View {
        let ring = self.locked();
        let mut blocks: Vec<Arc<Block>> = ring.blocks.iter().map(Arc::clone).collect();
        blocks.push(Arc::new(ring.open.clone()));
        View {
            first: ring.first(),
            next: ring.next,
            blocks,
        }
    }

    /// Keeps everybody else out, as a long search would.
    #[cfg(test)]
    pub(crate) fn held(&self) -> impl Drop + '_ {
        self.locked()
    }

    fn locked(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// The number of the oldest record that still counts.
    fn first(&self) -> u64 {
        let most = u64::try_from(self.most).unwrap_or(u64::MAX);
        let oldest = self.blocks.front().map_or(self.open.first, |it| it.first);
        oldest.max(self.next.saturating_sub(most))
    }

    fn push(&mut self, line: &[u8]) {
        if self.most == 0 {
            return;
        }
        let open = &mut self.open;
        if !open.text.is_empty() && open.text.len() + line.len() > BLOCK {
            let full = std::mem::replace(
                open,
                Block {
                    first: self.next,
                    ..Block::default()
                },
            );
            self.bytes += full.text.capacity();
            self.blocks.push_back(Arc::new(full));
            self.evict();
        }
        let open = &mut self.open;
        if open.text.capacity() == 0 {
            open.text.reserve_exact(BLOCK.max(line.len()));
        }
        open.text.extend_from_slice(line);
        open.ends.push(open.text.len());
        self.next += 1;
        self.news = true;
    }

    /// Lets go of blocks that hold nothing that still counts.
    fn evict(&mut self) {
        if self.most == 0 {
            self.blocks.clear();
            self.bytes = 0;
            self.open = Block {
                first: self.next,
                ..Block::default()
            };
        }
        let first = self.first();
        while let Some(oldest) = self.blocks.front() {
            let counts = oldest.first + count(oldest.ends.len()) > first;
            if counts && self.bytes + BLOCK <= MAX_BYTES {
                break;
            }
            self.bytes -= oldest.text.capacity();
            self.blocks.pop_front();
        }
    }
}

impl Block {
    /// Its records, the oldest first.
    fn records(block: &Arc<Self>) -> impl DoubleEndedIterator<Item = Kept> {
        let block = Arc::clone(block);
        (0..block.ends.len()).filter_map(move |index| {
            let end = *block.ends.get(index)?;
            let begin = match index.checked_sub(1) {
                Some(before) => *block.ends.get(before)?,
                None => 0,
            };
            Some(Kept {
                seq: block.first + count(index),
                block: Arc::clone(&block),
                at: begin..end,
            })
        })
    }
}

/// The ring as it was at a time. Lines are shared, not copied, but for the last few.
struct View {
    first: u64,
    next: u64,
    blocks: Vec<Arc<Block>>,
}

impl View {
    fn records(&self, from: u64) -> impl Iterator<Item = Kept> {
        let blocks = self.blocks.iter();
        blocks
            .filter(move |block| block.first + count(block.ends.len()) > from)
            .flat_map(Block::records)
            .filter(move |record| record.seq >= from)
    }

    fn backwards(&self, before: u64) -> impl Iterator<Item = Kept> {
        let first = self.first;
        let blocks = self.blocks.iter().rev();
        blocks
            .flat_map(|block| Block::records(block).rev())
            .filter(move |record| record.seq < before)
            .take_while(move |record| record.seq >= first)
    }
}

/// Whether it is the id of this record. The input of another one may hold it, where a client put it.
fn has_id(line: &[u8], id: &str) -> bool {
    Entry::of(line).is_ok_and(|entry| {
        let ids = [entry.decision_id(), entry.request_id()];
        ids.into_iter().flatten().any(|found| found == id)
    })
}

fn count(lines: usize) -> u64 {
    u64::try_from(lines).unwrap_or(u64::MAX)
}

/// Keeps every line that comes by.
#[derive(Debug)]
pub(super) struct Keeper(pub(super) Arc<Recent>);

impl Stage for Keeper {
    fn place(&self) -> Place {
        Place::Recent
    }

    fn line(&mut self, line: &[u8], _changed: &mut Vec<u8>) -> Passed {
        self.0.push(line);
        Passed::Left
    }

    fn pause(&mut self) {
        self.0.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u64, route: &str, decision: &str) -> String {
        format!(
            "{{\"version\":2,\"request_id\":\"req{n}\",\"decision_id\":\"dec{n}\",\"route\":\"{route}\",\
             \"caller\":{{\"subject\":\"alice\",\"client\":\"cli\"}},\"decision\":{decision},\
             \"reason\":\"a.b\",\"refusal\":{{\"code\":\"denied\",\"detail\":\"x\"}},\"status\":403,\
             \"policy\":{{\"name\":\"p\",\"revision\":\"1\"}}}}"
        )
    }

    fn filled(most: usize, lines: u64) -> Arc<Recent> {
        let recent = Recent::new(most);
        for n in 1..=lines {
            recent.push(record(n, if n % 2 == 0 { "even" } else { "odd" }, "\"deny\"").as_bytes());
        }
        recent
    }

    fn numbers(found: &Found) -> Vec<u64> {
        found.records.iter().map(|record| record.seq).collect()
    }

    #[test]
    fn the_last_records_are_kept_and_no_more() {
        let recent = filled(10, 1000);
        let all = Filter::default();
        let found = recent.after(0, &all, 100, usize::MAX);
        assert_eq!(numbers(&found), (991..=1000).collect::<Vec<_>>());
        assert_eq!((found.next, found.missed), (1000, 0));
        let late = recent.after(900, &all, 100, usize::MAX);
        assert_eq!((late.missed, late.records.len()), (90, 10));
        recent.bound(3);
        assert_eq!(
            numbers(&recent.last(None, &all, 100, usize::MAX)),
            [998, 999, 1000]
        );
        recent.bound(0);
        assert!(recent.last(None, &all, 100, usize::MAX).records.is_empty());
        recent.push(b"{}");
        assert!(recent.last(None, &all, 100, usize::MAX).records.is_empty());
    }

    #[test]
    fn bytes_are_bounded_whatever_the_number() {
        let recent = Recent::new(LARGEST);
        let long = vec![b'x'; 10_000];
        for _ in 0..5_000 {
            recent.push(&long);
        }
        let ring = recent.locked();
        assert!(ring.bytes + ring.open.text.capacity() <= MAX_BYTES);
        drop(ring);
        let kept = recent.last(None, &Filter::default(), LARGEST, usize::MAX);
        assert!(kept.records.len() > 1500, "{}", kept.records.len());
        assert_eq!(kept.records.last().unwrap().seq, 5_000);
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let recent = filled(1000, 700);
        let filter = Filter {
            route: Some("even".to_owned()),
            ..Filter::default()
        };
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let found = recent.after(after, &filter, 40, usize::MAX);
            after = found.next;
            if found.records.is_empty() {
                break;
            }
            assert!(found.records.len() <= 40);
            seen.extend(numbers(&found));
        }
        assert_eq!(seen, (1..=350).map(|n| n * 2).collect::<Vec<u64>>());
        assert_eq!(after, 700);
        let bounded = recent.after(0, &filter, 40, 1000);
        assert!((1..10).contains(&bounded.records.len()));
        assert_eq!(bounded.next, bounded.records.last().unwrap().seq + 1);
        let last = recent.last(Some(100), &filter, 2, usize::MAX);
        assert_eq!(numbers(&last), [96, 98]);
    }

    #[test]
    fn a_number_of_another_process_begins_anew() {
        let recent = filled(10, 5);
        let found = recent.after(4_000, &Filter::default(), 10, usize::MAX);
        assert_eq!(numbers(&found), [1, 2, 3, 4, 5]);
        assert_eq!(recent.after(5, &Filter::default(), 10, usize::MAX).next, 5);
    }

    #[test]
    fn a_record_is_found_by_either_id_and_by_nothing_else() {
        let recent = filled(1000, 900);
        for id in ["dec500", "req500"] {
            assert_eq!(recent.by_id(id).unwrap().seq, 500);
        }
        for id in ["", "dec50\"", "alice", "dec5000", "ec500", &"d".repeat(100)] {
            assert!(recent.by_id(id).is_none(), "{id}");
        }
        assert!(filled(10, 900).by_id("dec500").is_none());
    }

    #[test]
    fn a_record_that_holds_the_id_of_another_is_not_taken_for_it() {
        let recent = filled(1000, 400);
        let input = ",\"input\":{\"body\":{\"request_id\":\"req5\",\"decision_id\":\"no5\"}}}";
        let mut forged = record(401, "odd", "\"deny\"");
        forged.pop();
        forged.push_str(input);
        recent.push(forged.as_bytes());
        assert_eq!(recent.by_id("req401").unwrap().seq, 401);
        assert_eq!(recent.by_id("req5").unwrap().seq, 5);
        assert!(recent.by_id("no5").is_none());
    }

    #[test]
    fn filters_take_what_they_name() {
        let line = record(1, "orders", "\"deny\"");
        let with = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.takes(line.as_bytes())
        };
        let some = |text: &str| Some(text.to_owned());
        assert!(with(&|f| f.route = some("orders")));
        assert!(!with(&|f| f.route = some("order")));
        assert!(with(&|f| f.caller = some("alice")));
        assert!(with(&|f| f.caller = some("cli")));
        assert!(!with(&|f| f.caller = some("bob")));
        assert!(with(&|f| f.decision = some("deny")));
        assert!(!with(&|f| f.decision = some("none")));
        assert!(with(&|f| f.code = some("denied")));
        assert!(with(&|f| f.code = some("a.b")));
        assert!(with(&|f| f.policy = some("p")));
        assert!(with(&|f| f.status = Filter::statuses("4xx").ok()));
        assert!(!with(&|f| f.status = Filter::statuses("404").ok()));
        for wrong in ["", "xx", "99", "4x", "1000", "70000xx"] {
            assert!(Filter::statuses(wrong).is_err(), "{wrong}");
        }
        let undecided = Filter {
            decision: some("none"),
            ..Filter::default()
        };
        assert!(undecided.takes(record(1, "r", "null").as_bytes()));
        assert!(!undecided.takes(b"no json"));
    }

    #[tokio::test]
    async fn whoever_waits_is_told_once_a_batch() {
        let recent = filled(10, 1);
        let mut keeper = Keeper(Arc::clone(&recent));
        keeper.pause();
        let mut news = Box::pin(recent.news());
        news.as_mut().enable();
        keeper.pause();
        assert!(futures_ready(&mut news).await.is_none());
        assert_eq!(keeper.line(b"{}", &mut Vec::new()), Passed::Left);
        keeper.pause();
        assert!(futures_ready(&mut news).await.is_some());
    }

    /// What a future gives at once.
    async fn futures_ready<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
