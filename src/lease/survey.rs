//! What is open on this worker, for whoever looks at the gateway.
//!
//! Workers share nothing, so each looks through its own leases when it is asked, in turns between
//! which requests are served, and gives counts of all and facts of a bounded number.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use super::{Lease, Leases};
use crate::request::Upgrade;

/// How long a worker looks before requests get their turn.
const TURN: Duration = Duration::from_micros(200);

/// How many leases are looked at between two readings of the clock.
const STEP: usize = 32;

/// Most names of routes that are counted apart; further ones are counted as [`OTHER`].
const MAX_ROUTES: usize = 1_000;

/// The name of what is counted together.
const OTHER: &str = "(other routes)";

/// Which streams are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Of this route alone.
    pub route: Option<String>,
    /// Of callers whose subject, client or issuer holds this text; case does not matter.
    pub caller: Option<String>,
    /// Facts of at most so many, those that opened first.
    pub limit: usize,
}

/// What one worker has open.
#[derive(Debug, Clone, Default)]
pub struct OpenStreams {
    /// How many there are, whatever was asked for.
    pub open: usize,
    /// How many are as asked for.
    pub matching: usize,
    /// How many of all there are by route; `""` while the answer has not begun.
    pub by_route: BTreeMap<Box<str>, usize>,
    /// Those that opened first, at most as many as were asked for.
    pub streams: Vec<StreamFacts>,
}

/// One open stream.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    /// The request's id, as in its record.
    pub request_id: String,
    /// The route that it was opened on; none while the answer has not begun.
    pub route: Option<Box<str>>,
    /// `websocket`, `connect`, `events`, `grpc`, `body`, or `request` while the answer has not begun.
    pub kind: &'static str,
    /// The method of the request.
    pub method: String,
    /// The canonical path, cut at 256 characters.
    pub path: String,
    /// Who it is; none for anonymous callers: issuer's block, subject, client.
    pub caller: Option<(String, String, Option<String>)>,
    /// The address of the client.
    pub client: String,
    /// When the request was read.
    pub opened: SystemTime,
    /// Bytes from the client since then.
    pub received: u64,
    /// Bytes to the client since then.
    pub sent: u64,
    /// When the permission is judged again at the latest; none when only a change has it judged.
    pub until: Option<SystemTime>,
    /// Why it is ending, when its permission is over: the record's code.
    pub ending: Option<String>,
    /// How often its credential was replaced.
    pub renewals: u64,
}

/// Longest text of a client that is told.
const TEXT: usize = 256;

impl Leases {
    /// What is open here.
    pub async fn survey(&self, wish: &Wish) -> OpenStreams {
        let caller = wish.caller.as_ref().map(|text| text.to_lowercase());
        let mut told = OpenStreams {
            open: self.count(),
            ..OpenStreams::default()
        };
        // Those that opened last are on top, to be thrown out first.
        let mut oldest: BinaryHeap<(SystemTime, usize)> = BinaryHeap::new();
        let mut next = 0;
        loop {
            let begun = Instant::now();
            {
                let open = self.open.borrow();
                while next < open.capacity() {
                    let lease = open.get(next);
                    next += 1;
                    if let Some(lease) = lease {
                        told.count(lease);
                        if lease.is_wished(wish.route.as_deref(), caller.as_deref()) {
                            told.matching += 1;
                            oldest.push((lease.opened, next - 1));
                            if oldest.len() > wish.limit {
                                oldest.pop();
                            }
                        }
                    }
                    if next % STEP == 0 && begun.elapsed() >= TURN {
                        break;
                    }
                }
                if next >= open.capacity() {
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        for (nth, (opened, key)) in oldest.into_sorted_vec().into_iter().enumerate() {
            if nth % STEP == STEP - 1 {
                tokio::task::yield_now().await;
            }
            let open = self.open.borrow();
            // Another one may have taken its place meanwhile.
            let lease = open.get(key).filter(|lease| lease.opened == opened);
            if let Some(lease) = lease {
                told.streams.push(lease.facts());
            }
        }
        told
    }
}

impl OpenStreams {
    fn count(&mut self, lease: &Lease) {
        let route = lease.route.get().map_or("", |route| &**route);
        if let Some(count) = self.by_route.get_mut(route) {
            *count += 1;
        } else if self.by_route.len() < MAX_ROUTES {
            self.by_route.insert(route.into(), 1);
        } else {
            *self.by_route.entry(OTHER.into()).or_default() += 1;
        }
    }

    /// What several workers have open, together.
    pub fn and(mut self, other: Self, limit: usize) -> Self {
        self.open += other.open;
        self.matching += other.matching;
        for (route, count) in other.by_route {
            *self.by_route.entry(route).or_default() += count;
        }
        self.streams.extend(other.streams);
        self.streams.sort_by_key(|stream| stream.opened);
        self.streams.truncate(limit);
        self
    }

    /// The routes with the most streams first.
    pub fn busiest(&self) -> Vec<(&str, usize)> {
        let mut routes: Vec<(&str, usize)> = self
            .by_route
            .iter()
            .map(|(route, count)| (&**route, *count))
            .collect();
        routes.sort_by_key(|(_, count)| Reverse(*count));
        routes
    }
}

impl Lease {
    /// Bytes of the client.
    pub fn received(&self, bytes: usize) {
        add(&self.received, bytes);
    }

    /// Bytes to the client.
    pub(super) fn sent(&self, bytes: usize) {
        add(&self.sent, bytes);
    }

    /// It is a tunnel, whose bytes are counted elsewhere: the client's, and those for it.
    pub fn counted_by(&self, received: &Rc<Cell<u64>>, sent: &Rc<Cell<u64>>) {
        // A lease becomes a tunnel once.
        let counts = (Rc::clone(received), Rc::clone(sent));
        let _ = self.tunnel.set(counts);
    }

    fn is_wished(&self, route: Option<&str>, caller: Option<&str>) -> bool {
        let on_route = route.is_none_or(|name| self.route.get().is_some_and(|r| **r == *name));
        on_route
            && caller.is_none_or(|text| {
                self.holder.identity().is_some_and(|identity| {
                    let client = identity.client.as_deref().unwrap_or_default();
                    [&*identity.subject, client, &*identity.source]
                        .into_iter()
                        .any(|part| part.to_lowercase().contains(text))
                })
            })
    }

    fn facts(&self) -> StreamFacts {
        let request = self.request.borrow();
        let caller = self.holder.identity().map(|identity| {
            let client = identity.client.as_deref();
            (
                clipped(&identity.source),
                clipped(&identity.subject),
                client.map(clipped),
            )
        });
        let (received, sent) = match self.tunnel.get() {
            Some((received, sent)) => (received.get(), sent.get()),
            None => (self.received.get(), self.sent.get()),
        };
        let kind = match (&request.upgrade, self.tunnel.get()) {
            (Some(Upgrade::Connect), Some(_)) => "connect",
            (_, Some(_)) => "websocket",
            (_, None) => self.kind.get(),
        };
        StreamFacts {
            request_id: request.id.as_str().to_owned(),
            route: self.route.get().cloned(),
            kind,
            method: request.method.as_str().to_owned(),
            path: clipped(request.path.as_str()),
            caller,
            client: request.client.to_string(),
            opened: self.opened,
            received,
            sent,
            until: self.until.get(),
            ending: self.lapse().map(|lapse| clipped(lapse.code())),
            renewals: self.renewals.get(),
        }
    }
}

fn add(count: &Cell<u64>, bytes: usize) {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    count.set(count.get().saturating_add(bytes));
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Judged;
    use super::super::keeper::tests::request;
    use super::*;
    use crate::authn::Caller;

    const STANDS: Judged = Judged {
        epoch: 0,
        until: None,
    };

    fn wish(limit: usize) -> Wish {
        Wish {
            limit,
            ..Wish::default()
        }
    }

    #[tokio::test]
    async fn all_are_counted_and_the_oldest_are_told_up_to_the_limit() {
        let leases: Rc<Leases> = Rc::default();
        let holds: Vec<_> = (0..500)
            .map(|nth| {
                let path = format!("/{nth}");
                let hold = leases.open(request(&path), Caller::Anonymous, STANDS);
                hold.settle_in(if nth % 2 == 0 { "even" } else { "odd" });
                hold
            })
            .collect();
        holds[0].lease().received(3);
        holds[0].lease().sent(5);
        let told = leases.survey(&wish(10)).await;
        assert_eq!(
            (told.open, told.matching, told.streams.len()),
            (500, 500, 10)
        );
        assert_eq!(told.busiest(), [("even", 250), ("odd", 250)]);
        assert!(told.streams.is_sorted_by_key(|stream| stream.opened));
        let first = told
            .streams
            .iter()
            .find(|stream| stream.path == "/0")
            .unwrap();
        assert_eq!((first.received, first.sent), (3, 5));
        let odd = Wish {
            route: Some("odd".to_owned()),
            ..wish(1000)
        };
        let told = leases.survey(&odd).await;
        assert_eq!(
            (told.open, told.matching, told.streams.len()),
            (500, 250, 250)
        );
        let both = told.clone().and(told, 300);
        assert_eq!(
            (both.open, both.matching, both.streams.len()),
            (1000, 500, 300)
        );
        drop(holds);
        assert_eq!(leases.survey(&wish(10)).await.open, 0);
    }

    #[tokio::test]
    async fn ever_new_routes_do_not_make_the_counts_grow() {
        let leases: Rc<Leases> = Rc::default();
        let holds: Vec<_> = (0..MAX_ROUTES + 50)
            .map(|nth| {
                let hold = leases.open(request("/"), Caller::Anonymous, STANDS);
                hold.settle_in(&format!("route-{nth}"));
                hold
            })
            .collect();
        let told = leases.survey(&wish(1)).await;
        assert_eq!(told.by_route.len(), MAX_ROUTES + 1);
        assert_eq!(told.by_route[OTHER], 50);
        drop(holds);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(clipped("short"), "short");
        assert_eq!(clipped(&"ä".repeat(300)).chars().count(), TEXT + 1);
    }
}
