//! Deliveries: bodies that are posted one after the other, on a connection that is kept.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};

use super::{FetchError, Fetcher, Target, bare, http_date};
use crate::clock;

/// Most bytes that are read of an answer, for the connection's sake: what is in it is of no interest.
const MAX_ANSWER: usize = 64 * 1024;

/// How long the rest of an answer is waited for, once it is known what it says.
const DRAIN: Duration = Duration::from_millis(250);

/// How long a connection is kept without use: less than servers keep theirs.
const IDLE: Duration = Duration::from_secs(4);

/// What is delivered.
#[derive(Debug)]
pub struct Delivery<'d> {
    /// The type of the body.
    pub content_type: &'static str,
    /// How the body is compressed.
    pub encoding: Option<&'static str>,
    /// Further headers.
    pub headers: &'d [(HeaderName, HeaderValue)],
    /// The body.
    pub body: Bytes,
    /// Longest time until the head of the answer is there.
    pub total: Duration,
}

/// What the server said to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The status.
    pub status: u16,
    /// When it wants to be asked again (RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
}

impl Fetcher {
    /// A client for deliveries to one server, which keeps its connection between them. It trusts these
    /// authorities (PEM); an empty list means the public web's roots.
    ///
    /// # Errors
    /// [`FetchError::Client`] when an authority cannot be read.
    pub fn for_deliveries(authorities: &[Vec<u8>]) -> Result<Self, FetchError> {
        let client = bare(authorities)?.pool_max_idle_per_host(1);
        Self::of(client.pool_idle_timeout(IDLE), MAX_ANSWER)
    }

    /// Posts a body. Any status is an answer. Dropping the future ends it.
    ///
    /// # Errors
    /// [`FetchError::Network`] and [`FetchError::Timeout`]: nobody knows whether it was taken.
    pub async fn deliver(
        &self,
        target: &Target,
        delivery: Delivery<'_>,
    ) -> Result<Receipt, FetchError> {
        let mut request = self
            .client
            .post(target.0.clone())
            .header(CONTENT_TYPE, delivery.content_type)
            .body(delivery.body);
        if let Some(encoding) = delivery.encoding {
            request = request.header(CONTENT_ENCODING, encoding);
        }
        for (name, value) in delivery.headers {
            request = request.header(name, value);
        }
        let total = delivery.total;
        let mut response = tokio::time::timeout(total, request.send())
            .await
            .map_err(|_| FetchError::Timeout(total))?
            .map_err(|error| FetchError::Network(error.without_url()))?;
        let receipt = Receipt {
            status: response.status().as_u16(),
            retry_after: response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?, clock::now())),
        };
        // What is not read to its end costs the connection. A body that breaks or does not come changes
        // nothing of what was said: a delivery that was taken is not to be made again for it.
        let mut left = self.max_body;
        let drained = async {
            while let Ok(Some(part)) = response.chunk().await {
                match left.checked_sub(part.len()) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN, drained).await;
        Ok(receipt)
    }
}

/// Seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    // A date that has passed: now.
    http_date(text).map(|at| at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::testing::{Behaviour, Server};

    #[tokio::test]
    async fn what_was_said_counts_though_the_rest_of_the_answer_never_comes() {
        for (behaviour, expected) in [
            (Behaviour::Announce(1000), Ok(200)),
            (Behaviour::Drip, Ok(200)),
            (Behaviour::Endless, Ok(200)),
            (Behaviour::Status(503), Ok(503)),
            (Behaviour::Hang, Err("timeout")),
        ] {
            let server = Server::start(behaviour.clone()).await;
            let target = Target::parse(&server.url("/")).unwrap();
            let delivery = Delivery {
                content_type: "application/json",
                encoding: None,
                headers: &[],
                body: Bytes::new(),
                total: Duration::from_secs(1),
            };
            let fetcher = Fetcher::for_deliveries(&[]).unwrap();
            let receipt = fetcher.deliver(&target, delivery).await;
            let said = receipt.map(|receipt| receipt.status);
            assert_eq!(
                said.map_err(|error| error.code()),
                expected,
                "{behaviour:?}"
            );
        }
    }

    #[test]
    fn a_wish_to_wait_is_read_as_seconds_or_as_a_date() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:40:37 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(text, now), expected, "{text}");
        }
    }
}
