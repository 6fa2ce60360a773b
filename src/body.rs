//! Bodies: streamed, never gathered, one type for every answer.

use std::pin::Pin;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Empty, Full};

/// What goes wrong while a body streams. The text is for records, never for clients.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body of either direction. It stays on the core that made it, so it need not be `Send`.
pub type Body = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>;

/// A body without bytes.
pub fn empty() -> Body {
    Box::pin(Empty::new().map_err(|never| match never {}))
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Box::pin(Full::new(bytes.into()).map_err(|never| match never {}))
}
