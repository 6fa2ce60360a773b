//! Permissions that age: every stream that is open holds a lease, and a lease is judged again.
//!
//! A permission rests on a credential, on what the policy said, and on a configuration. When one of
//! them changes (the [`Epoch`](crate::epoch::Epoch) moves) or its time is over (the token expires, the
//! policy's `recheck_after` has passed), `keeper` has the same questions asked again for the same
//! request, with a fresh clock and the configuration now in force. Streams that are still allowed
//! notice nothing. The others end in their protocol's own words: `body` knows those of event streams
//! and gRPC calls; a body of another kind breaks off, and over HTTP/2 only its own stream is reset.
//!
//! **Nothing slips between check and use.** The epoch is read before the first question is asked, and
//! kept with the lease: one that is opened under an old number is judged again at once.
//!
//! Leases belong to the worker that serves their connection, and nothing here is shared between
//! threads.

mod body;
mod keeper;
mod renewal;
mod survey;
mod words;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::{Future, poll_fn};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use foldhash::fast::RandomState;
use http::header::AUTHORIZATION;
use slab::Slab;
use tokio::sync::Notify;

use crate::authn::Caller;
use crate::body::Body;
use crate::refusal::Refusal;
use crate::request::{ConnInfo, InboundRequest};

pub use body::bind;
pub use keeper::keep;
pub use renewal::{Renewal, is_renewal};
pub use survey::{OpenStreams, StreamFacts, Wish};

/// The leases of one worker.
#[derive(Default)]
pub struct Leases {
    open: RefCell<Slab<Rc<Lease>>>,
    /// How many each connection has.
    connections: RefCell<HashMap<usize, usize, RandomState>>,
    /// When the keeper looks next, as far as it knows.
    wakes: Cell<Option<SystemTime>>,
    /// There is something to be looked at before that.
    nudge: Notify,
    /// The epoch of its last look.
    seen: Cell<u64>,
}

/// An answer's body as it comes from the upstream.
type Far = RefCell<Option<Body>>;

/// Bytes of the client, and those for it.
type Counts = (Rc<Cell<u64>>, Rc<Cell<u64>>);

/// The permission of one open stream.
#[derive(Debug)]
pub struct Lease {
    /// What was asked. Asked again as it is, but for the time, and for the credential if the client
    /// has renewed it.
    request: RefCell<Rc<InboundRequest>>,
    /// Who was allowed; a renewal by somebody else is none.
    holder: Caller,
    /// The epoch that was read before it was judged last.
    judged_in: Cell<u64>,
    /// When it has to be judged again at the latest.
    until: Cell<Option<SystemTime>>,
    /// The keeper is waiting for an answer about it.
    judging: Cell<bool>,
    /// How often its credential was replaced.
    renewals: Cell<u64>,
    /// When the request that opened it was read.
    opened: SystemTime,
    /// The route that it was opened on. A copy of the name: threads that count in the one of the
    /// configuration would be in each other's way.
    route: OnceCell<Box<str>>,
    /// What kind of answer it is.
    kind: Cell<&'static str>,
    /// Bytes of the client, and those for it.
    received: Cell<u64>,
    sent: Cell<u64>,
    /// Where a tunnel counts them.
    tunnel: OnceCell<Counts>,
    /// What is coming from the upstream, to be dropped when nobody asks for it any more.
    far: RefCell<Weak<Far>>,
    lapse: OnceCell<Lapse>,
    /// Whoever moves the stream's bytes.
    waker: RefCell<Option<Waker>>,
}

/// Why a permission is over.
#[derive(Debug)]
pub struct Lapse {
    /// What would be said to the same request now.
    pub refusal: Refusal,
}

impl Lapse {
    /// The record's code: `token.expired`, `revoked.session`, a policy's reason.
    pub fn code(&self) -> &str {
        self.refusal.code()
    }

    /// The client's word: `expired`, `revoked`, `denied`, `unauthenticated` or `unavailable`.
    pub fn word(&self) -> &'static str {
        self.refusal.lapse()
    }
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the permission is over: {}", self.code())
    }
}

/// What a permission is when it was last judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// The epoch, read before the first question.
    pub epoch: u64,
    /// When it ends by itself.
    pub until: Option<SystemTime>,
}

/// Keeps a lease open; dropped with the stream.
pub struct Hold {
    leases: Rc<Leases>,
    key: usize,
    lease: Rc<Lease>,
}

impl Leases {
    /// Opens a lease for a request of `holder` that was allowed.
    pub fn open(
        self: &Rc<Self>,
        request: Rc<InboundRequest>,
        holder: Caller,
        judged: Judged,
    ) -> Hold {
        let opened = request.received_at;
        let lease = Rc::new(Lease {
            request: RefCell::new(request),
            holder,
            judged_in: Cell::new(judged.epoch),
            until: Cell::new(judged.until),
            judging: Cell::new(false),
            renewals: Cell::new(0),
            opened,
            route: OnceCell::new(),
            kind: Cell::new("request"),
            received: Cell::new(0),
            sent: Cell::new(0),
            tunnel: OnceCell::new(),
            far: RefCell::default(),
            lapse: OnceCell::new(),
            waker: RefCell::default(),
        });
        let conn = connection(&lease);
        *self.connections.borrow_mut().entry(conn).or_default() += 1;
        let key = self.open.borrow_mut().insert(Rc::clone(&lease));
        self.expect(&judged);
        Hold {
            leases: Rc::clone(self),
            key,
            lease,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// The leases of one connection.
    pub fn of(&self, conn: &Arc<ConnInfo>) -> Vec<Rc<Lease>> {
        // Whoever has no stream here does not have us look through those of everybody.
        let place = Arc::as_ptr(conn).addr();
        if !self.connections.borrow().contains_key(&place) {
            return Vec::new();
        }
        let open = self.open.borrow();
        let same = |lease: &&Rc<Lease>| Arc::ptr_eq(&lease.request.borrow().conn, conn);
        open.iter()
            .map(|(_, lease)| lease)
            .filter(same)
            .cloned()
            .collect()
    }

    /// The credential of a stream was renewed: from now on this is what is asked.
    pub fn renew(&self, lease: &Lease, request: InboundRequest, judged: Judged) {
        lease.request.replace(Rc::new(request));
        lease.renewals.set(lease.renewals.get() + 1);
        lease.stands(judged);
        self.expect(&judged);
    }

    /// Tells the keeper of a lease that it does not expect yet.
    fn expect(&self, judged: &Judged) {
        let sooner = match (judged.until, self.wakes.get()) {
            (Some(until), Some(wakes)) => until < wakes,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if sooner || judged.epoch < self.seen.get() {
            self.nudge.notify_one();
        }
    }
}

impl Lease {
    /// The request, with another clock reading.
    pub fn request(&self, now: SystemTime) -> InboundRequest {
        let mut request = InboundRequest::clone(&self.request.borrow());
        request.received_at = now;
        request
    }

    /// Whether this is who was allowed: the same subject of the same issuer, through the same client.
    pub fn is_of(&self, caller: &Caller) -> bool {
        match (self.holder.identity(), caller.identity()) {
            (Some(holder), Some(caller)) => {
                holder.id == caller.id && holder.client == caller.client
            }
            (None, _) | (_, None) => false,
        }
    }

    /// Why it is over, if it is.
    pub fn lapse(&self) -> Option<&Lapse> {
        self.lapse.get()
    }

    /// The request as it would be with the credential of another one.
    pub fn renewed(&self, by: &InboundRequest) -> InboundRequest {
        let mut request = self.request(by.received_at);
        request.headers.remove(AUTHORIZATION);
        for credential in by.detached().headers.get_all(AUTHORIZATION) {
            request.headers.append(AUTHORIZATION, credential.clone());
        }
        request
    }

    /// It was judged, and goes on.
    fn stands(&self, judged: Judged) {
        self.judged_in.set(judged.epoch);
        self.until.set(judged.until);
    }

    /// It was judged, and is over.
    fn end(&self, refusal: Refusal) {
        // A lease ends once; whoever comes later has nothing to add.
        let _ = self.lapse.set(Lapse { refusal });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        // A client that does not read its answer is not asked for it, and so it would not end: what is
        // coming from the upstream does all the same.
        if let Some(far) = self.far.borrow().upgrade() {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(2 * body::GRACE).await;
                let gone = far.take();
                drop(gone);
            });
        }
    }
}

impl Hold {
    /// The lease itself.
    pub fn lease(&self) -> &Rc<Lease> {
        &self.lease
    }

    /// Ready when the permission is over. One task at a time can wait.
    pub fn poll_lapse(&self, cx: &mut Context<'_>) -> Poll<&Lapse> {
        if let Some(lapse) = self.lease.lapse.get() {
            return Poll::Ready(lapse);
        }
        let mut waker = self.lease.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the permission is over.
    pub async fn lapsed(&self) -> &Lapse {
        poll_fn(|cx| self.poll_lapse(cx)).await
    }

    /// Does this as long as the permission lasts.
    ///
    /// # Errors
    /// Why the permission ended first.
    pub async fn race<T>(&self, work: impl Future<Output = T>) -> Result<T, Refusal> {
        tokio::select! {
            biased;
            lapse = self.lapsed() => Err(lapse.refusal.clone()),
            done = work => Ok(done),
        }
    }

    /// The stream of this route may last for long: what its lease holds gets memory of its own.
    pub fn settle_in(&self, route: &str) {
        let _ = self.lease.route.set(route.into());
        let request = self.lease.request.borrow().detached();
        self.lease.request.replace(Rc::new(request));
    }
}

/// What tells the connection of a lease from others that are open.
fn connection(lease: &Lease) -> usize {
    Arc::as_ptr(&lease.request.borrow().conn).addr()
}

impl Drop for Hold {
    fn drop(&mut self) {
        let gone = self.leases.open.borrow_mut().try_remove(self.key);
        drop(gone);
        if let Entry::Occupied(mut count) = self
            .leases
            .connections
            .borrow_mut()
            .entry(connection(&self.lease))
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases")
            .field("open", &self.count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("key", &self.key).finish()
    }
}
