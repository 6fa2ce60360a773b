//! Decisions that were made just now: a page of them, or one with its why.
//!
//! `GET /decisions` gives the last ones, or those behind a number; with `wait` it waits for the next.
//! An answer names the number to go on from, how many records were missed because they had left
//! memory, and the process, for with another one numbers begin anew.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};

use super::pages::{self, problem};
use super::{AdminState, Page};
use crate::audit::Audit;
use crate::audit::recent::{Filter, Found, Kept, Recent};
use crate::audit::why::{self, Untold};
use crate::authz::workbench::why::Why;

/// Requests that may wait for decisions at one time: others of the listener's connections stay free.
pub(super) const MAX_WAITING: usize = 16;

/// Decisions that may be explained at one time, and how long one may take.
pub(super) const MAX_EXPLAINING: usize = 2;
const LONGEST: Duration = Duration::from_secs(2);

/// The stack of who explains: more than workers have, which decided it.
const STACK: usize = 8 << 20;

/// Longest wait.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Most decisions of an answer, and how many there are unless it is said.
const MAX_LIMIT: usize = 1000;
const USUAL_LIMIT: usize = 100;

/// Most bytes of the records in an answer, but for the first.
const MAX_BYTES: usize = 4 << 20;

/// Longest value of a filter, in bytes.
const MAX_VALUE: usize = 256;

const PATH: &str = "/decisions";

/// Whether the page at `path` is one of these.
pub(super) fn is_here(path: &str) -> bool {
    path == PATH || one(path).is_some()
}

/// The id in the path of one decision.
fn one(path: &str) -> Option<&str> {
    path.strip_prefix(PATH)?.strip_prefix('/')
}

/// The page at `uri`, which [`is_here`].
pub(super) async fn find(state: &AdminState, method: &Method, uri: &Uri) -> Page {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return pages::wrong_method();
    }
    let audit = Arc::clone(&state.live.current().audit);
    let recent = Arc::clone(audit.recent());
    if audit.is_off() || !recent.is_on() {
        return problem(
            StatusCode::NOT_FOUND,
            "no decisions are kept: `audit.sink` is `none`, or `audit.recent` is 0",
        );
    }
    match one(uri.path()) {
        Some(id) => single(state, &audit, id).await,
        None => match Wanted::of(uri.query().unwrap_or_default()) {
            Ok(wanted) => list(state, recent, wanted).await,
            Err(why) => problem(StatusCode::BAD_REQUEST, &why),
        },
    }
}

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    after: Option<u64>,
    before: Option<u64>,
    limit: usize,
    wait: Duration,
    filter: Filter,
}

impl Wanted {
    fn of(query: &str) -> Result<Self, String> {
        let mut wanted = Self {
            limit: USUAL_LIMIT,
            ..Self::default()
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.len() > MAX_VALUE {
                return Err(format!("`{name}` is longer than {MAX_VALUE} bytes"));
            }
            let number = || {
                let wrong = || format!("`{name}` is a number");
                value.parse::<u64>().map_err(|_| wrong())
            };
            let text = || Some(value.to_string()).filter(|text| !text.is_empty());
            match &*name {
                "after" => wanted.after = Some(number()?),
                "before" => wanted.before = Some(number()?),
                "limit" => {
                    let limit = usize::try_from(number()?).unwrap_or(usize::MAX);
                    wanted.limit = limit.clamp(1, MAX_LIMIT);
                }
                "wait" => wanted.wait = Duration::from_secs(number()?).min(MAX_WAIT),
                "route" => wanted.filter.route = text(),
                "caller" => wanted.filter.caller = text(),
                "decision" => wanted.filter.decision = text(),
                "code" => wanted.filter.code = text(),
                "policy" => wanted.filter.policy = text(),
                "status" if value.is_empty() => wanted.filter.status = None,
                "status" => wanted.filter.status = Some(Filter::statuses(&value)?),
                _ => {
                    return Err(format!(
                        "there is no parameter `{}`: `after`, `before`, `limit`, `wait`, `route`, \
                         `caller`, `decision`, `code`, `status` and `policy` are known",
                        name.escape_default()
                    ));
                }
            }
        }
        if wanted.after.is_some() && wanted.before.is_some() {
            return Err("`after` and `before` do not go together".to_owned());
        }
        Ok(wanted)
    }

    /// Looks once. Blocks for milliseconds when there is much to look at.
    fn found(&self, recent: &Recent, after: Option<u64>) -> Found {
        match after {
            Some(after) => recent.after(after, &self.filter, self.limit, MAX_BYTES),
            None => recent.last(self.before, &self.filter, self.limit, MAX_BYTES),
        }
    }
}

async fn list(state: &AdminState, recent: Arc<Recent>, wanted: Wanted) -> Page {
    let seat = match wanted.wait.is_zero() || wanted.before.is_some() {
        true => None,
        false => match state.waiting.try_acquire() {
            Ok(seat) => Some(seat),
            Err(_) => {
                return problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &format!("{MAX_WAITING} others wait for decisions: ask without `wait`"),
                );
            }
        },
    };
    let deadline = Instant::now() + wanted.wait;
    let wanted = Arc::new(wanted);
    let (mut after, mut missed) = (wanted.after, 0);
    loop {
        // Before it is looked: what comes in between wakes us.
        let mut news = pin!(recent.news());
        news.as_mut().enable();
        let looking = (Arc::clone(&wanted), Arc::clone(&recent));
        let look = move || looking.0.found(&looking.1, after);
        let Ok(found) = tokio::task::spawn_blocking(look).await else {
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "the search broke off");
        };
        missed += found.missed;
        let late = seat.is_none() || Instant::now() >= deadline;
        if !found.records.is_empty() || late {
            return shown(recent.instance(), &found, missed);
        }
        after = Some(found.next);
        // Late is no error: there is nothing new.
        let _ = timeout_at(deadline, news).await;
    }
}

fn shown(instance: &str, found: &Found, missed: u64) -> Page {
    let mut text = format!(
        "{{\"instance\":\"{instance}\",\"next\":{},\"missed\":{missed},\"decisions\":[",
        found.next
    );
    for (index, record) in found.records.iter().enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        text.push_str(&format!("{{\"seq\":{},\"record\":", record.seq));
        text.push_str(&line(record));
        text.push('}');
    }
    text.push_str("\n]}\n");
    pages::raw_json(text)
}

/// Records are ASCII.
fn line(record: &Kept) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(record.line())
}

async fn single(state: &AdminState, audit: &Arc<Audit>, id: &str) -> Page {
    let (recent, id) = (Arc::clone(audit.recent()), id.to_owned());
    let found = tokio::task::spawn_blocking(move || recent.by_id(&id)).await;
    let Ok(Some(record)) = found else {
        return problem(
            StatusCode::NOT_FOUND,
            "there is no such decision among the last ones; `portcullis explain ID --from` looks \
             into files",
        );
    };
    let why = match explained(state, audit, &record).await {
        Ok(why) => format!("\"why\":{}", json!(why)),
        Err(why_not) => format!("\"why\":null,\"why_not\":{}", json!(why_not)),
    };
    let (seq, record) = (record.seq, line(&record));
    pages::raw_json(format!("{{\"seq\":{seq},\"record\":{record},{why}}}\n"))
}

/// Asks the policy again, on a thread that may need as much stack as it likes.
pub(super) async fn explained(
    state: &AdminState,
    audit: &Arc<Audit>,
    record: &Kept,
) -> Result<Why, String> {
    let Ok(seat) = Arc::clone(&state.explaining).try_acquire_owned() else {
        return Err("others are being explained: try again".to_owned());
    };
    let (audit, record) = (Arc::clone(audit), record.clone());
    let told = beside(seat, move || {
        let question = why::Question::of(record.line())?;
        let (policy, revision) = (&question.policy, &question.revision);
        let text = audit
            .text(policy, revision)
            .ok_or_else(|| Untold::NoText(revision.clone()))?;
        why::explain(record.line(), &text, LONGEST)
    });
    match told.map_err(|error| error.to_string())?.await {
        Ok(why) => why.map_err(|untold| untold.to_string()),
        Err(_) => Err("the evaluation broke off".to_owned()),
    }
}

/// Works on a thread of its own, which keeps the seat to its end: whoever asked may be gone before.
pub(super) fn beside<T: Send + 'static>(
    seat: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, told) = oneshot::channel();
    thread::Builder::new()
        .name("why".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let found = work();
            drop(seat);
            let _ = sender.send(found);
        })?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn who_hangs_up_leaves_the_seat_to_the_work_that_goes_on() {
        let seats = Arc::new(Semaphore::new(1));
        let seat = Arc::clone(&seats).try_acquire_owned().unwrap();
        let (end, wait) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let work = move || {
            begin.send(()).unwrap();
            wait.recv()
        };
        drop(beside(seat, work).unwrap());
        begun.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(seats.available_permits(), 0);
        end.send(()).unwrap();
        let next = tokio::time::timeout(Duration::from_secs(20), seats.acquire()).await;
        assert!(next.is_ok());
    }

    #[test]
    fn what_is_asked_for_is_bounded_and_what_is_not_known_refused() {
        let wanted = Wanted::of("after=7&limit=100000&wait=3600&route=a%20b&status=4xx").unwrap();
        assert_eq!(wanted.after, Some(7));
        assert_eq!((wanted.limit, wanted.wait), (MAX_LIMIT, MAX_WAIT));
        assert_eq!(wanted.filter.route.as_deref(), Some("a b"));
        assert_eq!(wanted.filter.status, Some((400, 499)));
        assert_eq!(Wanted::of("").unwrap().limit, USUAL_LIMIT);
        assert_eq!(Wanted::of("limit=0").unwrap().limit, 1);
        assert!(Wanted::of("route=&status=").unwrap().filter.is_empty());
        for wrong in ["rout=a", "after=x", "status=no", "after=1&before=2"] {
            assert!(Wanted::of(wrong).is_err(), "{wrong}");
        }
        assert!(Wanted::of(&format!("route={}", "a".repeat(MAX_VALUE + 1))).is_err());
    }
}
