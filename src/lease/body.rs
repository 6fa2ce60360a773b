//! An answer's body that ends when its permission does.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::words::{Messages, Tail, Words};
use super::{Far, Hold, Lapse};
use crate::body::{Body, BodyError};

/// How long the message under way may take to end when the permission is over.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How much of it may still be sent then.
const MOST: u64 = 1024 * 1024;

/// Has the answer's body end with its permission. `grpc`: the request is a gRPC call, whose status
/// travels in trailers.
pub fn bind(response: Response<Body>, hold: Hold, grpc: bool) -> Response<Body> {
    let words = words(response.headers(), grpc);
    hold.lease().kind.set(match &words {
        Words::Grpc(_) => "grpc",
        Words::Events(_) => "events",
        Words::Silent => "body",
    });
    response.map(|body| {
        let far = Rc::new(RefCell::new(Some(body)));
        hold.lease().far.replace(Rc::downgrade(&far));
        Body::stream(Leased {
            far,
            hold,
            words,
            leaving: None,
            over: false,
        })
    })
}

fn words(headers: &HeaderMap, grpc: bool) -> Words {
    let kind = headers
        .get(CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let begins = |name: &[u8]| {
        kind.get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name))
    };
    if grpc && begins(b"application/grpc") {
        Words::Grpc(Messages::default())
    } else if begins(b"text/event-stream")
        // In compressed or counted bytes there is no place for a word of ours.
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_LENGTH)
    {
        Words::Events(Tail::default())
    } else {
        Words::Silent
    }
}

struct Leased {
    /// The upstream's; gone when the permission is over and the last message is at its end, or nobody
    /// asked for it in time.
    far: Rc<Far>,
    hold: Hold,
    words: Words,
    /// Set when the permission is over and a message is under way.
    leaving: Option<Leaving>,
    /// Everything is said.
    over: bool,
}

/// A message is under way whose permission is over.
struct Leaving {
    deadline: Pin<Box<Sleep>>,
    left: u64,
}

impl Leased {
    /// Ends the stream in its own words, or breaks it off.
    fn leave(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Dropped before its end: that ends the exchange with the upstream.
        let gone = self.far.take();
        drop(gone);
        self.over = true;
        let Some(lapse) = self.hold.lease().lapse() else {
            return Poll::Ready(None);
        };
        let between = self.words.between();
        match &self.words {
            Words::Events(_) if between => Poll::Ready(Some(Ok(Frame::data(last_event(lapse))))),
            // A reader throws away an event that has not ended.
            Words::Events(_) => Poll::Ready(None),
            Words::Grpc(_) => Poll::Ready(Some(Ok(Frame::trailers(status(lapse))))),
            Words::Silent => Poll::Ready(Some(Err(lapse.to_string().into()))),
        }
    }
}

/// The last event of a stream whose permission is over.
fn last_event(lapse: &Lapse) -> Bytes {
    let word = lapse.word();
    format!("event: portcullis.ended\ndata: {{\"code\":\"{word}\"}}\n\n").into()
}

/// The trailers of a call whose permission is over.
fn status(lapse: &Lapse) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", lapse.refusal.grpc_status().into());
    let text = format!("the permission is over: {}", lapse.word());
    if let Ok(text) = HeaderValue::try_from(text) {
        trailers.insert("grpc-message", text);
    }
    trailers
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased")
            .field("words", &self.words)
            .finish_non_exhaustive()
    }
}

impl HttpBody for Leased {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if this.hold.poll_lapse(cx).is_ready() {
            if this.words.between() || this.far.borrow().is_none() {
                return this.leave();
            }
            let leaving = this.leaving.get_or_insert_with(|| Leaving {
                deadline: Box::pin(sleep_until(Instant::now() + GRACE)),
                left: MOST,
            });
            if leaving.left == 0 || leaving.deadline.as_mut().poll(cx).is_ready() {
                return this.leave();
            }
        }
        let frame = match &mut *this.far.borrow_mut() {
            Some(body) => ready!(Pin::new(body).poll_frame(cx)),
            None => None,
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.words.sent(data);
            this.hold.lease().sent(data.len());
            if let Some(leaving) = &mut this.leaving {
                let here = u64::try_from(data.len()).unwrap_or(u64::MAX);
                leaving.left = leaving.left.saturating_sub(here);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // What was taken away has not come to its end.
        self.over
            || self
                .far
                .borrow()
                .as_ref()
                .is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.far.borrow() {
            Some(body) => body.size_hint(),
            None => SizeHint::default(),
        }
    }
}
