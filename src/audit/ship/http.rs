//! A server that records are posted to.

use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::Said;
use super::chunk::Chunk;
use super::config::ShipBody;
use crate::fetch::{Delivery, Fetcher, Target};

/// Where and how.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) fetcher: Fetcher,
    pub(super) target: Target,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
    pub(super) gzip: bool,
    pub(super) body: ShipBody,
}

impl Server {
    /// Posts some records; with how many bytes went over the wire.
    pub(super) async fn post(&self, chunk: &Chunk, records: &Range<usize>) -> (Said, usize) {
        let body = match chunk.body(records, self.body, self.gzip) {
            Ok(body) => body,
            Err(error) => return (Said::later("memory", error.to_string()), 0),
        };
        let bytes = body.len();
        let delivery = Delivery {
            content_type: match self.body {
                ShipBody::Array => "application/json",
                ShipBody::Lines => "application/x-ndjson",
            },
            encoding: self.gzip.then_some("gzip"),
            headers: &self.headers,
            body: body.into(),
            total: self.timeout,
        };
        let said = match self.fetcher.deliver(&self.target, delivery).await {
            Ok(receipt) => match receipt.status {
                200..=299 => Said::Taken,
                413 => Said::TooLarge,
                // These are about what was sent.
                status @ (400 | 422) => Said::Refused(status),
                // These may be: what stands between judges bodies by their text. Or they are about us.
                status @ (402..=406 | 409..=424 | 426..=428 | 430..=499) => Said::Unclear {
                    status,
                    after: receipt.retry_after,
                },
                // Others are about us, the server, or the way to it.
                status => Said::Later {
                    kind: "status",
                    why: format!("the server answered with status {status}"),
                    after: receipt.retry_after,
                },
            },
            Err(error) => {
                let mut why = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    why.push_str(": ");
                    why.push_str(&cause.to_string());
                    source = cause.source();
                }
                Said::later(error.code(), why)
            }
        };
        (said, bytes)
    }
}
