//! One connection: hyper's settings, the clock beside it, and the hand-over of requests.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::task::coop::has_budget_remaining;
use tokio::time::Sleep;

use super::activity::{Activity, Cause, InFlight, Stream};
use super::frames::{Frames, PREFACE};
use super::framing::Framing;
use super::gather::Gather;
use super::parking::Parkable;
use super::tap::{Tap, Watch};
use super::tunnel::{Opened, Slot};
use super::turn::Others;
use crate::body::{Body, BodyError};
use crate::gateway::Answer;
use crate::listener::Bounds;
use crate::request::ConnInfo;

/// How far a socket's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Serving.
    Open,
    /// Requests under way are finished, no others are taken.
    Draining,
    /// Everything that is still open is closed.
    Cut,
}

/// How long an idle connection stays open once draining has begun: a client may be sending a
/// request at this moment, and closing at once would lose it.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// How long a connection without requests may take to close once it was told to.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long nothing happens on a connection of HTTP/1 before it is parked. Shorter in tests here, so
/// that all of them go through it.
const REST: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1000 });
/// How long tunnels have to say goodbye at the end of draining. Shorter than the worker's patience.
const GOODBYE: Duration = Duration::from_millis(600);
/// So much of an answer is relayed before everybody else on the core has a turn: about 0.6 ms of work. A
/// service and a client that are both fast would go on for 4 MiB otherwise.
const TURN: usize = 1024 * 1024;
/// How often a closing connection is looked at.
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1 or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2 when the connection begins with its preface, HTTP/1 otherwise. `Upgrade: h2c` is never
    /// honoured: what follows an upgrade would be read by other rules than those that admitted it.
    ByPreface,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// As the protocol foresees, by either side.
    Closed,
    /// The peer broke off.
    Broken,
    /// The peer sent what cannot be read; over HTTP/1 it was answered by a bare 400, 414 or 431.
    Malformed,
    /// A bound was exceeded.
    Bound(Cause),
    /// Closed with work under way, at the end of draining.
    Cut,
}

impl Ending {
    /// The word for metrics and logs.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::Malformed => "malformed",
            Self::Bound(cause) => cause.as_str(),
            Self::Cut => "cut",
        }
    }
}

/// Serves a connection until it ends. `info.ambiguous_head` is filled in here. It is on the heap, or its
/// way here would leave room for it in each future that it came through.
pub(super) async fn serve<S, H, F>(
    mut stream: S,
    mut info: Box<ConnInfo>,
    protocol: Protocol,
    bounds: &Bounds,
    phase: watch::Receiver<Phase>,
    handler: H,
) -> Ending
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Fn(Arc<ConnInfo>, Request<Incoming>) -> F + Unpin + 'static,
    F: Future<Output: Into<Answer>> + 'static,
{
    let (protocol, ahead) = match protocol {
        Protocol::ByPreface => match sniff(&mut stream, bounds, phase.clone()).await {
            Ok(found) => found,
            Err(ending) => return ending,
        },
        Protocol::Http1 | Protocol::Http2 => (protocol, Bytes::new()),
    };
    let activity = Activity::new();
    if protocol == Protocol::Http2 {
        let watch = Watch::Http2(Frames::new(bounds.http2.control_frames, Instant::now()));
        let tap = Tap::new(stream, ahead, watch, Rc::clone(&activity));
        let gather = Gather::new(tap);
        let settle = {
            let gather = gather.clone();
            move |cx: &mut Context<'_>| gather.poll_settle(cx)
        };
        let connection =
            http2_connection(gather, Arc::new(*info), bounds, &activity, &phase, handler);
        let close = http2::Connection::graceful_shutdown;
        // On the heap, or every connection of HTTP/1 would hold room for its size.
        let mut connection = Box::pin(connection);
        drive(
            connection.as_mut(),
            settle,
            close,
            None,
            &activity,
            bounds,
            phase,
        )
        .await
    } else {
        let flag = Arc::new(AtomicBool::new(false));
        info.ambiguous_head = Some(Arc::clone(&flag));
        let watch = Watch::Http1(Framing::default());
        let tap = Tap::new(stream, ahead, watch, Rc::clone(&activity));
        let opened = Slot::default();
        let leave_at = (Rc::clone(&opened), phase.clone());
        let service = http1_service(Arc::new(*info), &activity, flag, leave_at, handler);
        let settings = http1_settings(bounds);
        let connection = Parkable::new(tap, service, settings, Rc::clone(&activity), opened);
        // HTTP/1 gathers by itself.
        let settle = |_: &mut Context<'_>| Poll::Ready(Ok(()));
        let close = |connection: Pin<&mut Parkable<_, _>>| connection.get_mut().close();
        let park: Park<_> = |connection: Pin<&mut Parkable<_, _>>| connection.get_mut().park();
        drive(
            pin!(connection),
            settle,
            close,
            Some(park),
            &activity,
            bounds,
            phase,
        )
        .await
    }
}

/// Reads as much as it takes to tell HTTP/2's preface from a request line.
async fn sniff<S: AsyncRead + Unpin>(
    stream: &mut S,
    bounds: &Bounds,
    mut phase: watch::Receiver<Phase>,
) -> Result<(Protocol, Bytes), Ending> {
    let mut ahead = Vec::with_capacity(PREFACE.len());
    let reading = async {
        loop {
            if ahead == PREFACE {
                return Ok(Protocol::Http2);
            }
            if !PREFACE.starts_with(&ahead) {
                return Ok(Protocol::Http1);
            }
            let left = PREFACE.len() - ahead.len();
            let limit = u64::try_from(left).unwrap_or(1);
            match (&mut *stream).take(limit).read_buf(&mut ahead).await {
                Ok(0) => return Err(Ending::Closed),
                Ok(_) => {}
                Err(_) => return Err(Ending::Broken),
            }
        }
    };
    let drained = async {
        // A closed channel means that the worker is gone.
        let _ = phase.wait_for(|phase| *phase >= Phase::Draining).await;
        tokio::time::sleep(GRACE).await;
    };
    let protocol = tokio::select! {
        biased;
        found = reading => found?,
        () = drained => return Err(Ending::Closed),
        () = tokio::time::sleep(bounds.header_timeout.get()) => {
            return Err(Ending::Bound(Cause::Header));
        }
    };
    Ok((protocol, ahead.into()))
}

/// Why and since when a connection is being closed in good order.
struct Leaving {
    since: Instant,
    /// `None` when the socket is draining.
    cause: Option<Cause>,
    /// Whether hyper has been told.
    told: bool,
}

/// Gives back what a connection at rest does not need.
type Park<C> = fn(Pin<&mut C>);

/// Polls a connection and the clock beside it. `settle` writes what was held back while the
/// connection was polled; `close` ends the connection in good order; `park` is for HTTP/1. HTTP/2
/// has none, and can say beforehand which requests it still takes.
async fn drive<C>(
    mut connection: Pin<&mut C>,
    settle: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    close: impl Fn(Pin<&mut C>),
    park: Option<Park<C>>,
    activity: &Activity,
    bounds: &Bounds,
    mut phase: watch::Receiver<Phase>,
) -> Ending
where
    C: Future<Output = hyper::Result<()>>,
{
    let announces = park.is_none();
    let mut alarm = pin!(tokio::time::sleep(Duration::ZERO));
    let mut leaving: Option<Leaving> = None;
    let mut seen = Phase::Open;
    // Tunnels say goodbye before they are cut.
    let mut cut_at: Option<Instant> = None;
    loop {
        let next = next_event(
            &mut phase,
            seen,
            connection.as_mut(),
            &settle,
            alarm.as_mut(),
            activity,
        );
        let now = match next.await {
            Event::Phase(now) => {
                seen = now;
                let now = Instant::now();
                if seen == Phase::Cut && activity.tunnels() > 0 {
                    cut_at = Some(now + GOODBYE);
                } else if seen == Phase::Cut {
                    return if activity.quiet() {
                        Ending::Closed
                    } else {
                        Ending::Cut
                    };
                }
                activity.drain();
                leaving.get_or_insert(Leaving {
                    since: now,
                    cause: None,
                    told: false,
                });
                now
            }
            Event::Ended(_) if cut_at.is_some() => return Ending::Cut,
            Event::Ended(ended) => {
                if activity.is_flooded() {
                    return Ending::Bound(Cause::Frames);
                }
                return match leaving {
                    // A peer that hangs up when it is told to is no failure.
                    Some(Leaving {
                        cause, told: true, ..
                    }) if activity.quiet() => cause.map_or(Ending::Closed, Ending::Bound),
                    Some(_) | None => ended,
                };
            }
            Event::Alarm => Instant::now(),
        };
        if cut_at.is_some_and(|cut_at| now >= cut_at || activity.tunnels() == 0) {
            return Ending::Cut;
        }
        let mut next = match activity.check(now, bounds) {
            Ok(next) => next,
            Err(Cause::Idle) => {
                let idle = Leaving {
                    since: now,
                    cause: Some(Cause::Idle),
                    told: false,
                };
                leaving.get_or_insert(idle);
                now + DRAIN_TICK
            }
            Err(Cause::Lingered) => {
                let cause = leaving.and_then(|leaving| leaving.cause);
                return cause.map_or(Ending::Closed, Ending::Bound);
            }
            Err(cause) => return Ending::Bound(cause),
        };
        if let Some(leaving) = &mut leaving {
            let quiet = activity.quiet();
            // HTTP/2 says which requests it still takes, so nothing is lost by telling at once.
            // HTTP/1 can only close, and does it when nothing is on its way.
            let due = leaving.cause.is_some() || now >= leaving.since + GRACE;
            if !leaving.told && (announces || (due && quiet)) {
                close(connection.as_mut());
                leaving.told = true;
            } else if quiet && now >= leaving.since + PATIENCE {
                return leaving.cause.map_or(Ending::Closed, Ending::Bound);
            }
            // A tunnel ends by itself, or is told to.
            if !activity.released() {
                next = next.min(now + DRAIN_TICK);
            }
        } else if let Some(park) = park {
            // While it serves, the clock asks every now and then. The first byte wakes it and asks.
            match activity.at_rest() {
                Some(since) if now >= since + REST => park(connection.as_mut()),
                Some(since) => next = next.min(since + REST),
                None if activity.released() => {}
                None => next = next.min(now + REST),
            }
        }
        if let Some(cut_at) = cut_at {
            next = next.min(cut_at).min(now + DRAIN_TICK);
        }
        alarm.as_mut().reset(next.into());
    }
}

/// What a connection's task has to look at.
enum Event {
    /// The socket's life has gone on.
    Phase(Phase),
    /// The connection is over.
    Ended(Ending),
    /// It is time to look at the clock.
    Alarm,
}

/// Polls a connection until one of the three happens.
///
/// The phase and the alarm are polled when this begins, which leaves the task's waker with them; at
/// every other poll, two for a request at least, one load each says whether they have news. A
/// `select!` over the three costs a thousand instructions more for every request.
async fn next_event<C>(
    phase: &mut watch::Receiver<Phase>,
    seen: Phase,
    mut connection: Pin<&mut C>,
    settle: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    mut alarm: Pin<&mut Sleep>,
    activity: &Activity,
) -> Event
where
    C: Future<Output = hyper::Result<()>>,
{
    let glance = phase.clone();
    let mut changed = pin!(phase.wait_for(|phase| *phase > seen));
    let mut told: Option<Waker> = None;
    poll_fn(|cx| {
        let known = matches!(&told, Some(told) if told.will_wake(cx.waker()));
        // A closed channel means that the worker is gone.
        if (!known || glance.has_changed().unwrap_or(true))
            && let Poll::Ready(changed) = changed.as_mut().poll(cx)
        {
            return Poll::Ready(Event::Phase(changed.map_or(Phase::Cut, |phase| *phase)));
        }
        activity.turn();
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            let ended = result.map_or_else(|error| ending(&error), |()| Ending::Closed);
            return Poll::Ready(Event::Ended(ended));
        }
        if let Poll::Ready(Err(_)) = settle(cx) {
            return Poll::Ready(Event::Ended(Ending::Broken));
        }
        if activity.take_woken() {
            return Poll::Ready(Event::Alarm);
        }
        if (!known || alarm.is_elapsed()) && alarm.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Event::Alarm);
        }
        // A future that is polled without budget does not keep the waker; it is polled again then.
        if !known && has_budget_remaining() {
            told = Some(cx.waker().clone());
        }
        Poll::Pending
    })
    .await
}

fn ending(error: &hyper::Error) -> Ending {
    let of_http2 = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_library() && !error.is_io());
    if error.is_parse() || of_http2 {
        tracing::debug!(%error, "a connection sent what cannot be read");
        Ending::Malformed
    } else {
        Ending::Broken
    }
}

fn http1_service<H, F>(
    info: Arc<ConnInfo>,
    activity: &Rc<Activity>,
    ambiguous: Arc<AtomicBool>,
    (opened, phase): (Slot, watch::Receiver<Phase>),
    handler: H,
) -> impl Service + Unpin + use<H, F>
where
    H: Fn(Arc<ConnInfo>, Request<Incoming>) -> F + Unpin + 'static,
    F: Future<Output: Into<Answer>> + 'static,
{
    let activity = Rc::clone(activity);
    service_fn(move |request: Request<Incoming>| {
        let guard = activity.request();
        let encoded = request.headers().contains_key(TRANSFER_ENCODING);
        // No verdict at all means that hyper and the tap disagree about where requests begin.
        let fits = activity
            .next_verdict()
            .is_some_and(|verdict| verdict.fits(encoded));
        ambiguous.store(!fits, Ordering::Relaxed);
        let activity = Rc::clone(&activity);
        let connect = *request.method() == Method::CONNECT;
        let upgrade = connect || request.headers().contains_key(UPGRADE);
        let (opened, phase) = (Rc::clone(&opened), phase.clone());
        let place = activity.queue();
        // Boxed, so that an idle connection does not hold room for a request's whole path.
        let answer = Box::pin(handler(Arc::clone(&info), request));
        async move {
            if let Some(place) = place {
                place.pass().await;
            }
            let Answer {
                mut response,
                tunnel,
            } = answer.await.into();
            if let Some(tunnel) = tunnel {
                let tunnel = Opened::new(tunnel, guard.tunnel(), phase);
                opened.replace(Some(Box::new(tunnel)));
                return Ok(response.map(|body| Watched {
                    body,
                    turn: 0,
                    others: Others::default(),
                    stream: None,
                    _guard: None,
                }));
            }
            // What a client sends behind a request for another protocol, without waiting for the
            // answer, may be meant as either: it is nothing. Behind `CONNECT` it is never ours.
            let unclear = connect || (upgrade && activity.more_came());
            // hyper closes when an answer ends before the body that it answers, since the rest
            // of the body would stand where the next head is due. The client should know.
            if activity.draining() || activity.body_is_open() || unclear {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|body| Watched {
                body,
                turn: 0,
                others: Others::default(),
                stream: None,
                _guard: Some(guard),
            }))
        }
    })
}

fn http1_settings(bounds: &Bounds) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // The connection's own clock tells idle connections from slow heads; hyper's does not.
        .header_read_timeout(None)
        .max_header_size(bounds.max_header_size.len())
        .max_buf_size(bounds.max_header_size.len().max(MIN_BUFFER));
    // hyper keeps its own default on the stack; any other number costs an allocation a request.
    if bounds.max_headers != HYPER_MAX_HEADERS {
        builder.max_headers(usize::try_from(bounds.max_headers).unwrap_or(usize::MAX));
    }
    builder
}

fn http2_connection<S, H, F>(
    stream: Gather<Tap<S>>,
    info: Arc<ConnInfo>,
    bounds: &Bounds,
    activity: &Rc<Activity>,
    phase: &watch::Receiver<Phase>,
    handler: H,
) -> http2::Connection<TokioIo<Gather<Tap<S>>>, impl Service + use<S, H, F>, LocalExec>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Fn(Arc<ConnInfo>, Request<Incoming>) -> F + 'static,
    F: Future<Output: Into<Answer>> + 'static,
{
    let executor = LocalExec {
        activity: Rc::clone(activity),
        next: Rc::default(),
    };
    let next = Rc::clone(&executor.next);
    let activity = Rc::clone(activity);
    let phase = phase.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let guard = activity.request();
        let stream = activity.stream();
        // hyper gives the stream's future to the executor right after this call.
        next.replace(Some(Rc::clone(&stream)));
        let connect = *request.method() == Method::CONNECT;
        let upgrade = connect.then(|| {
            let tools = (Rc::clone(&activity), Rc::clone(&next), phase.clone());
            (hyper::upgrade::on(&mut request), tools)
        });
        let place = activity.queue();
        let answer = Box::pin(handler(Arc::clone(&info), request));
        async move {
            if let Some(place) = place {
                place.pass().await;
            }
            let Answer { response, tunnel } = answer.await.into();
            if let (Some(tunnel), Some((upgrade, tools))) = (tunnel, upgrade) {
                let (activity, next, phase) = tools;
                let sending = activity.stream();
                let opened = Opened::new(tunnel, guard.tunnel(), phase);
                let watched = Rc::clone(&sending);
                tokio::task::spawn_local(opened.on_stream(upgrade, activity, watched));
                // hyper gives the half that sends to the executor right after this answer.
                next.replace(Some(sending));
                return Ok(response.map(|body| Watched {
                    body,
                    turn: 0,
                    others: Others::default(),
                    stream: None,
                    _guard: None,
                }));
            }
            stream.offer();
            Ok::<_, Infallible>(response.map(|body| Watched {
                body,
                turn: 0,
                others: Others::default(),
                stream: Some(stream),
                _guard: Some(guard),
            }))
        }
    });
    let http2 = &bounds.http2;
    let size = |size: crate::schema::Size| u32::try_from(size.get()).unwrap_or(u32::MAX);
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_stream_window_size(size(http2.stream_window))
        .initial_connection_window_size(size(http2.connection_window))
        .max_send_buf_size(http2.send_buffer.len())
        .max_header_list_size(size(bounds.max_header_size))
        .max_pending_accept_reset_streams(count(http2.max_pending_resets))
        .max_local_error_reset_streams(count(http2.max_local_resets))
        .keep_alive_interval(http2.ping_interval.get())
        .keep_alive_timeout(http2.ping_timeout.get());
    builder.serve_connection(TokioIo::new(stream), service)
}

/// hyper's own default for the fields of a head.
const HYPER_MAX_HEADERS: u32 = 100;
/// The least read buffer that hyper takes.
const MIN_BUFFER: usize = 8192;

/// What hyper asks of a service, as we build them.
pub(super) trait Service:
    hyper::service::Service<
        Request<Incoming>,
        Response = Response<Watched>,
        Error = Infallible,
        Future: 'static,
    >
{
}

impl<T> Service for T where
    T: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Watched>,
            Error = Infallible,
            Future: 'static,
        >
{
}

/// Spawns the streams of an HTTP/2 connection on this thread, each under its watch.
#[derive(Debug, Clone)]
struct LocalExec {
    activity: Rc<Activity>,
    /// The stream whose future comes next.
    next: Rc<RefCell<Option<Rc<Stream>>>>,
}

impl<F: Future + 'static> Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        match self.next.take() {
            Some(stream) => {
                let activity = Rc::clone(&self.activity);
                let entry = Entry { activity, stream };
                tokio::task::spawn_local(Guarded { future, entry });
            }
            None => {
                tokio::task::spawn_local(async move {
                    future.await;
                });
            }
        }
    }
}

/// A stream's entry among those that are watched.
struct Entry {
    activity: Rc<Activity>,
    stream: Rc<Stream>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.activity.forget(&self.stream);
    }
}

pin_project_lite::pin_project! {
    /// A stream's future; it is dropped, and so the stream reset, when the stream is cut.
    struct Guarded<F> {
        #[pin]
        future: F,
        entry: Entry,
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = self.project();
        if me.entry.stream.is_cut(cx.waker()) {
            return Poll::Ready(());
        }
        me.future.poll(cx).map(|_| ())
    }
}

/// The body of an answer, which ends the request when it is dropped.
pub(super) struct Watched {
    body: Body,
    /// How much came of it since somebody else last had a turn.
    turn: usize,
    others: Others,
    stream: Option<Rc<Stream>>,
    _guard: Option<InFlight>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.turn >= TURN {
            ready!(self.others.poll(cx));
            self.turn = 0;
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => self.turn += frame.data_ref().map_or(0, Bytes::len),
            Poll::Ready(_) => {}
            Poll::Pending => self.turn = 0,
        }
        if let Some(stream) = &self.stream {
            match &frame {
                Poll::Ready(Some(_)) => stream.offer(),
                Poll::Ready(None) | Poll::Pending => stream.await_upstream(),
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
