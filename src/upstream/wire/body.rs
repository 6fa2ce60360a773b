//! The body of an answer, piece by piece, up to where its head said that it ends.

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::Fault;
use super::chunked::Chunked;

/// What of an answer's body is still to come.
#[derive(Debug)]
pub(super) enum Incoming {
    /// There is none, or it was read to its end.
    Nothing,
    /// So many bytes; more than none.
    Length(u64),
    /// Until its last chunk.
    Chunked(Chunked),
    /// Until the service hangs up.
    UntilClose,
    /// Nobody knows: what follows the last piece is malformed in this way.
    Broken(&'static str),
}

impl Incoming {
    /// Whether the body was read to its end.
    pub(super) fn ended(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Goes through framing that is there already, so that an end is known as soon as it can be.
    pub(super) fn advance(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        match self {
            Self::Chunked(chunked) => match chunked.advance(input) {
                Ok(()) if chunked.ended() => *self = Self::Nothing,
                Ok(()) => {}
                Err(why) => *self = Self::Broken(why),
            },
            Self::Broken(_) | Self::Nothing | Self::Length(_) | Self::UntilClose => {}
        }
        match self {
            Self::Broken(why) => Err(Fault::Malformed(why)),
            Self::Nothing | Self::Length(_) | Self::Chunked(_) | Self::UntilClose => Ok(()),
        }
    }

    /// The next frame, out of what was read.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Fault> {
        self.advance(input)?;
        let frame = match self {
            Self::Nothing | Self::Broken(_) => None,
            Self::Length(left) => {
                let data = take(left, input);
                if *left == 0 {
                    *self = Self::Nothing;
                }
                data.map(Frame::data)
            }
            Self::Chunked(chunked) => match chunked.data(input) {
                Some(data) => Some(Frame::data(data)),
                None => chunked.trailers().map(Frame::trailers),
            },
            Self::UntilClose => (!input.is_empty()).then(|| Frame::data(input.split().freeze())),
        };
        if frame.is_some() {
            // What is wrong behind this frame shows when the next one is asked for.
            let _ = self.advance(input);
        }
        Ok(frame)
    }

    /// The whole body, if it is one piece that was read already.
    pub(super) fn whole(&mut self, input: &mut BytesMut) -> Option<Bytes> {
        match self {
            Self::Nothing => Some(Bytes::new()),
            Self::Length(left) if u64::try_from(input.len()).is_ok_and(|here| here >= *left) => {
                let data = take(left, input);
                *self = Self::Nothing;
                data
            }
            Self::Chunked(chunked) => {
                let data = chunked.last(input)?;
                *self = Self::Nothing;
                Some(data)
            }
            Self::Length(_) | Self::UntilClose | Self::Broken(_) => None,
        }
    }

    /// How much room the next read should have.
    pub(super) fn room(&self, least: usize, most: usize) -> usize {
        let left = match self {
            Self::Nothing | Self::Broken(_) => 0,
            Self::Length(left) => *left,
            Self::Chunked(chunked) => chunked.left(),
            Self::UntilClose => u64::MAX,
        };
        usize::try_from(left).unwrap_or(most).clamp(least, most)
    }

    /// The service hung up.
    pub(super) fn hung_up(&mut self) -> Result<(), Fault> {
        match self {
            Self::Nothing => Ok(()),
            Self::UntilClose => {
                *self = Self::Nothing;
                Ok(())
            }
            Self::Broken(why) => Err(Fault::Malformed(why)),
            Self::Length(_) | Self::Chunked(_) => Err(Fault::Short("in the body of its answer")),
        }
    }

    /// How much of the body is still to come.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::UntilClose | Self::Broken(_) => SizeHint::default(),
        }
    }
}

/// Up to `left` bytes of the input, which are counted off; `None` if there are none.
pub(super) fn take(left: &mut u64, input: &mut BytesMut) -> Option<Bytes> {
    if input.is_empty() {
        return None;
    }
    let piece = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= u64::try_from(piece).unwrap_or(*left);
    Some(input.split_to(piece).freeze())
}
