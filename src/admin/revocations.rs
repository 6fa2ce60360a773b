//! The pages by which operators revoke, look what is revoked, and take it back.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::pages::{answer, problem, wrong_method};
use super::{AdminState, Page};
use crate::clock;
use crate::revocation::{BadEntry, Change, Entry, Lift, Moment, NotTaken, Place, Target};
use crate::snapshot::Snapshot;

/// Who operators are, as a source of entries.
const SOURCE: &str = "admin";

/// The most entries of one request.
const MAX_ENTRIES: usize = 1000;

/// The most entries of one page, and how many there are unless it is said.
const MAX_LIMIT: usize = 1000;
const USUAL_LIMIT: usize = 100;

/// Whether the page at this path is one of these.
pub(super) fn is_here(path: &str) -> bool {
    matches!(path, "/revocations" | "/revocations/logout")
}

/// The page.
pub(super) async fn find(state: &AdminState, method: &Method, uri: &Uri, body: &Bytes) -> Page {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let snapshot = state.live.current();
    let outcome = match (uri.path(), method) {
        ("/revocations", _) if reading => list(&snapshot, uri.query()).await,
        ("/revocations", &Method::POST) => revoke(&snapshot, body).await,
        ("/revocations", &Method::DELETE) => lift(&snapshot, body).await,
        ("/revocations/logout", &Method::POST) => logout(&snapshot, body).await,
        _ => return wrong_method(),
    };
    outcome.unwrap_or_else(|page| page)
}

/// An order to log somebody out everywhere.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Logout {
    issuer: String,
    subject: String,
    #[serde(default)]
    reason: Option<String>,
}

async fn revoke(snapshot: &Snapshot, body: &Bytes) -> Result<Page, Page> {
    take(snapshot, &entries(body)?).await
}

async fn logout(snapshot: &Snapshot, body: &Bytes) -> Result<Page, Page> {
    let orders: Vec<Logout> = one_or_many(body)?;
    let now = Some(Moment(clock::now()));
    let entries: Vec<Entry> = orders
        .into_iter()
        .map(|order| Entry {
            kind: "subject".to_owned(),
            issuer: order.issuer,
            subject: Some(order.subject),
            before: now,
            reason: order.reason,
            ..Entry::default()
        })
        .collect();
    take(snapshot, &entries).await
}

async fn take(snapshot: &Snapshot, entries: &[Entry]) -> Result<Page, Page> {
    let source: Arc<str> = SOURCE.into();
    let changes = entries
        .iter()
        .enumerate()
        .map(|(place, entry)| {
            let revocation = entry
                .revocation(&source)
                .map_err(|error| bad(place, &error))?;
            Ok(Change::Revoke(revocation))
        })
        .collect::<Result<Vec<_>, Page>>()?;
    // All can be read, or none is taken.
    let results = snapshot
        .revocation
        .apply(changes, clock::now())
        .kept()
        .await;
    let count = |what: &Result<bool, NotTaken>| results.iter().filter(|it| *it == what).count();
    let refused: Vec<Value> = results
        .iter()
        .enumerate()
        .filter_map(|(place, result)| {
            let error = result.err()?;
            Some(json!({ "index": place, "error": error.to_string() }))
        })
        .collect();
    let unknown = unknown_issuers(snapshot, entries);
    let mut document = json!({
        "taken": count(&Ok(true)),
        "known": count(&Ok(false)),
        "refused": refused,
        "kept": kept(snapshot, &results),
    });
    if let Some(members) = document.as_object_mut()
        && !unknown.is_empty()
    {
        members.insert("unknown_issuers".to_owned(), json!(unknown));
    }
    Ok(answer(status(&results), &document))
}

/// The worst of what happened.
fn status(results: &[Result<bool, NotTaken>]) -> StatusCode {
    let any = |what| results.contains(&Err(what));
    if any(NotTaken::Store) {
        StatusCode::INTERNAL_SERVER_ERROR
    } else if any(NotTaken::Full) {
        StatusCode::INSUFFICIENT_STORAGE
    } else if any(NotTaken::Past) || any(NotTaken::Nothing) {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::OK
    }
}

/// Whether what was taken outlives the process.
fn kept(snapshot: &Snapshot, results: &[Result<bool, NotTaken>]) -> &'static str {
    if results.contains(&Err(NotTaken::Store)) {
        "until the next restart: the store cannot be written"
    } else if snapshot.revocation.plane().store().is_some() {
        "on disk"
    } else {
        "until the next restart: there is no `revocation.store`"
    }
}

/// Issuers that no block of the configuration has: most likely misspelt.
fn unknown_issuers<'e>(snapshot: &Snapshot, entries: &'e [Entry]) -> Vec<&'e str> {
    let known = |name: &str| {
        snapshot
            .issuers
            .values()
            .any(|issuer| **issuer.issuer() == *name)
    };
    let mut unknown: Vec<&str> = entries
        .iter()
        .filter(|entry| entry.serial.is_none() && !known(&entry.issuer))
        .map(|entry| entry.issuer.as_str())
        .collect();
    unknown.dedup();
    unknown
}

async fn lift(snapshot: &Snapshot, body: &Bytes) -> Result<Page, Page> {
    let entries = entries(body)?;
    let targets = entries
        .iter()
        .enumerate()
        .map(|(place, entry)| entry.target().map_err(|error| bad(place, &error)))
        .collect::<Result<Vec<Target>, Page>>()?;
    let now = clock::now();
    let source: Arc<str> = SOURCE.into();
    let changes = targets.iter().zip(&entries).map(|(target, entry)| {
        Change::Lift(Lift {
            target: target.clone(),
            source: Arc::clone(&source),
            reason: entry.reason.clone(),
        })
    });
    let results = snapshot
        .revocation
        .apply(changes.collect(), now)
        .kept()
        .await;
    let plane = snapshot.revocation.plane();
    let listed: Vec<Value> = targets
        .iter()
        .enumerate()
        .filter_map(|(place, target)| {
            let lists = plane.lists_with(target, now);
            (!lists.is_empty()).then(|| json!({ "index": place, "lists": lists }))
        })
        .collect();
    let lifted = results
        .iter()
        .filter(|result| **result != Ok(false))
        .count();
    let document = json!({
        "lifted": lifted,
        "absent": results.len() - lifted,
        "still_listed": listed,
        "kept": kept(snapshot, &results),
    });
    let status = match status(&results) {
        StatusCode::OK if lifted == 0 => StatusCode::NOT_FOUND,
        other => other,
    };
    Ok(answer(status, &document))
}

/// What of the list is asked for.
#[derive(Debug, Default)]
struct Wanted {
    issuer: Option<String>,
    kind: Option<String>,
    limit: Option<usize>,
    after: Option<Place>,
}

async fn list(snapshot: &Snapshot, query: Option<&str>) -> Result<Page, Page> {
    let refuse = |text: &str| problem(StatusCode::BAD_REQUEST, text);
    let Wanted {
        issuer,
        kind,
        limit,
        after,
    } = wanted(query.unwrap_or_default()).map_err(refuse)?;
    let limit = limit.unwrap_or(USUAL_LIMIT);
    let plane = Arc::clone(snapshot.revocation.plane());
    // Reads a file: not on the thread that everything else of the gateway's own runs on.
    let read = tokio::task::spawn_blocking(move || {
        plane.page(after, limit, clock::now(), |target| {
            issuer
                .as_deref()
                .is_none_or(|issuer| issuer == target.issuer())
                && kind
                    .as_deref()
                    .is_none_or(|kind| kind == target.kind_name())
        })
    });
    let page = read
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                problem(
                    StatusCode::GONE,
                    "the list was written anew: begin without `after`",
                )
            } else {
                problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &format!("the store cannot be read: {error}"),
                )
            }
        })?;
    let next = page
        .next
        .map(|Place(file, place)| format!("{file:x}-{place:x}"));
    Ok(answer(
        StatusCode::OK,
        &json!({ "revocations": page.entries, "next": next, "complete": page.complete }),
    ))
}

fn wanted(query: &str) -> Result<Wanted, &'static str> {
    let mut wanted = Wanted::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or("the query cannot be read")?;
        match name {
            "issuer" => wanted.issuer = Some(value),
            "kind" => wanted.kind = Some(value),
            "limit" => {
                let limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=MAX_LIMIT).contains(limit));
                wanted.limit = Some(limit.ok_or("`limit` is 1 to 1000")?);
            }
            "after" => {
                let number = |text| u64::from_str_radix(text, 16).ok();
                let place = value
                    .split_once('-')
                    .and_then(|(file, place)| Some(Place(number(file)?, number(place)?)));
                wanted.after = Some(place.ok_or("`after` is the `next` of the page before")?);
            }
            _ => return Err("the query takes `issuer`, `kind`, `limit` and `after`"),
        }
    }
    Ok(wanted)
}

/// A value of a query, without its percent signs and pluses.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn entries(body: &Bytes) -> Result<Vec<Entry>, Page> {
    one_or_many(body)
}

fn one_or_many<T: DeserializeOwned>(body: &Bytes) -> Result<Vec<T>, Page> {
    let many = body.trim_ascii_start().starts_with(b"[");
    let read: Result<Vec<T>, _> = if many {
        serde_json::from_slice(body)
    } else {
        serde_json::from_slice(body).map(|one| vec![one])
    };
    let read = read.map_err(|error| {
        problem(
            StatusCode::BAD_REQUEST,
            &format!("the body is no entry and no list of entries: {error}"),
        )
    })?;
    if read.is_empty() || read.len() > MAX_ENTRIES {
        return Err(problem(
            StatusCode::BAD_REQUEST,
            "the body holds 1 to 1000 entries",
        ));
    }
    Ok(read)
}

fn bad(place: usize, error: &BadEntry) -> Page {
    problem(
        StatusCode::BAD_REQUEST,
        &format!("entry {place}: {error}; nothing was changed"),
    )
}
