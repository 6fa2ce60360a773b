//! What is read of a body before its request is judged, for policies that look at bodies.
//!
//! The body is held while the policy is asked, up to the size that the policy's block names, and then
//! goes on as it came: the same bytes, the same trailers, and the rest of it, if there is more. Nobody
//! is waited for without end: a body has the route's idle timeout for each piece and the gateway's
//! bound for all of it. Calls of gRPC and requests for another protocol may go on for as long as
//! their permission lasts, and may wait for our answer before they send: nothing of theirs is read.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, timeout_at};

use crate::authz::{BodyTerms, WhenLarger};
use crate::body::{Body, BodyError, empty};
use crate::request::{Excerpt, InboundRequest};
use crate::upstream::RequestBodyFault;

/// How long a body may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest time in which no byte comes.
    pub idle: Duration,
    /// Longest time for all that is read.
    pub total: Duration,
}

/// Reads what a policy is to be shown, leaves it with the request, and returns the body as it came.
///
/// # Errors
/// [`RequestBodyFault`]: too large, too slow, or broken off.
pub async fn take_in(
    request: &mut InboundRequest,
    body: Body,
    terms: BodyTerms,
    patience: Patience,
) -> Result<Body, RequestBodyFault> {
    let ends = body.is_end_stream();
    // A stream of messages cannot be waited for; and a client may call anything gRPC.
    if !ends && request.is_grpc() && terms.when_larger == WhenLarger::Refuse {
        return Err(RequestBodyFault::TooLarge);
    }
    if ends || request.is_grpc() || request.upgrade.is_some() {
        request.excerpt = Some(Arc::new(Excerpt {
            bytes: Bytes::new(),
            whole: ends,
        }));
        return Ok(body);
    }
    let (excerpt, body) = read(body, terms, patience).await?;
    request.excerpt = Some(Arc::new(excerpt));
    Ok(body)
}

async fn read(
    mut body: Body,
    terms: BodyTerms,
    patience: Patience,
) -> Result<(Excerpt, Body), RequestBodyFault> {
    let told = body.size_hint();
    let refuse = terms.when_larger == WhenLarger::Refuse;
    let most = u64::try_from(terms.max).unwrap_or(u64::MAX);
    // Known before the first byte: then none is asked for.
    if refuse && told.lower() > most {
        return Err(RequestBodyFault::TooLarge);
    }
    let deadline = Instant::now() + patience.total;
    let mut head = BytesMut::new();
    let mut trailers = None;
    let mut whole = true;
    while !body.is_end_stream() {
        let idle = Instant::now() + patience.idle;
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let frame = timeout_at(idle.min(deadline), frame).await;
        let frame = match frame.map_err(|_| RequestBodyFault::TooSlow)? {
            None => break,
            Some(Err(_)) => return Err(RequestBodyFault::BrokenOff),
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => head.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if head.len() > terms.max {
            if refuse {
                return Err(RequestBodyFault::TooLarge);
            }
            whole = false;
            break;
        }
    }
    let head = head.freeze();
    let excerpt = Excerpt {
        bytes: head.slice(..head.len().min(terms.max)),
        whole,
    };
    let rest = if whole { empty() } else { body };
    let replay = Replay {
        left: told.exact(),
        head,
        rest,
        trailers,
    };
    Ok((excerpt, Body::stream(replay)))
}

/// What was read, and then the rest.
struct Replay {
    head: Bytes,
    rest: Body,
    trailers: Option<HeaderMap>,
    /// How much is to come, where the client has told the length. What came without a length goes on
    /// without.
    left: Option<u64>,
}

impl HttpBody for Replay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.head.is_empty() {
            let head = std::mem::take(&mut this.head);
            this.sent(&head);
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut this.rest).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.sent(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(left) = self.left {
            return SizeHint::with_exact(left);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(u64::try_from(self.head.len()).unwrap_or(u64::MAX));
        hint
    }
}

impl Replay {
    fn sent(&mut self, data: &Bytes) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.left = self.left.map(|left| left.saturating_sub(length));
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("held", &self.head.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const PATIENCE: Patience = Patience {
        idle: Duration::from_millis(50),
        total: Duration::from_millis(200),
    };

    /// Frames that are there, and then an end, or nothing ever.
    struct Pieces {
        frames: VecDeque<Frame<Bytes>>,
        ends: bool,
        told: Option<u64>,
    }

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            match self.frames.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None if self.ends => Poll::Ready(None),
                None => Poll::Pending,
            }
        }

        fn size_hint(&self) -> SizeHint {
            self.told.map_or_else(SizeHint::new, SizeHint::with_exact)
        }
    }

    fn body(pieces: &[&'static str], trailers: bool, ends: bool, told: Option<u64>) -> Body {
        let mut frames: VecDeque<Frame<Bytes>> = pieces
            .iter()
            .map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())))
            .collect();
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("x-sum", "7".parse().unwrap());
            frames.push_back(Frame::trailers(map));
        }
        Body::stream(Pieces { frames, ends, told })
    }

    fn terms(max: usize, when_larger: WhenLarger) -> BodyTerms {
        BodyTerms { max, when_larger }
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(work)
    }

    async fn all(mut body: Body) -> (String, Option<HeaderMap>) {
        let (mut text, mut trailers) = (String::new(), None);
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match frame.unwrap().into_data() {
                Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        (text, trailers)
    }

    #[test]
    fn what_was_read_goes_on_byte_for_byte_with_its_trailers() {
        run(async {
            let body = body(&["ab", "cd"], true, true, None);
            let terms = terms(4, WhenLarger::Refuse);
            let (excerpt, body) = read(body, terms, PATIENCE).await.unwrap();
            assert_eq!(&excerpt.bytes[..], b"abcd");
            assert!(excerpt.whole);
            // Without a length, as it came.
            assert_eq!(body.size_hint().exact(), None);
            let (text, trailers) = all(body).await;
            assert_eq!(text, "abcd");
            assert_eq!(trailers.unwrap()["x-sum"], "7");
        });
    }

    #[test]
    fn a_larger_body_is_refused_or_cut_for_the_policy_alone() {
        run(async {
            let long = || body(&["ab", "cd", "ef", "gh"], false, true, Some(8));
            let refuse = terms(3, WhenLarger::Refuse);
            let fault = read(long(), refuse, PATIENCE).await.err();
            assert_eq!(fault, Some(RequestBodyFault::TooLarge));
            let untold = body(&["ab", "cd"], false, false, None);
            let fault = read(untold, refuse, PATIENCE).await.err();
            assert_eq!(fault, Some(RequestBodyFault::TooLarge));

            let cut = terms(3, WhenLarger::Truncate);
            let (excerpt, body) = read(long(), cut, PATIENCE).await.unwrap();
            assert_eq!(&excerpt.bytes[..], b"abc");
            assert!(!excerpt.whole);
            assert_eq!(body.size_hint().exact(), Some(8));
            assert_eq!(all(body).await.0, "abcdefgh");
        });
    }

    #[test]
    fn a_body_that_never_ends_is_not_waited_for() {
        run(async {
            let silent = body(&["a"], false, false, None);
            let refuse = terms(3, WhenLarger::Refuse);
            let fault = read(silent, refuse, PATIENCE).await.err();
            assert_eq!(fault, Some(RequestBodyFault::TooSlow));
        });
    }
}
