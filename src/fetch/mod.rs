//! The only file that names reqwest: bounded fetches of small documents.
//!
//! A fetch is a plain GET (or POST) of one URL: no redirects (a redirect is how a document of one
//! origin is swapped for another's), no cookies, no proxy from the environment, no compression (no
//! decompression bombs), one deadline over everything, and a body that is counted while it
//! streams. What to fetch is never taken from a request, and from
//! a certificate only what the configuration allows.

mod deliver;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, EXPIRES,
    HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
};
use reqwest::{RequestBuilder, Url};

use crate::clock;
use crate::schema::Secret;
use crate::tls::client::client_config;

pub use self::deliver::{Delivery, Receipt};

/// Longest body of a fetched document unless the caller asks for less.
pub const MAX_BODY: usize = 256 * 1024;

/// Longest time to reach the server, within the total.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time for a whole fetch, from the name's resolution to the last byte.
pub const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Most headers an answer may have.
const MAX_HEADERS: usize = 64;

/// A URL that may be fetched: https, or http on a loopback address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(Url);

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// A sentence for the operator: not a URL, not https (http is for loopback addresses), or
    /// with a part that has no place in it (user, password, fragment).
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        Self::read(text, false)
    }

    /// Reads the URL of a document that proves itself by a signature, such as a revocation list:
    /// http is good enough for it everywhere, and common.
    ///
    /// # Errors
    /// As [`Target::parse`], but for the scheme.
    pub fn parse_signed(text: &str) -> Result<Self, FetchError> {
        Self::read(text, true)
    }

    fn read(text: &str, signed: bool) -> Result<Self, FetchError> {
        let url = Url::parse(text).map_err(|_| FetchError::Target("it is not an absolute URL"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::Target("it carries credentials"));
        }
        if url.fragment().is_some() {
            return Err(FetchError::Target("it carries a fragment"));
        }
        let loopback = match url.host_str() {
            Some("localhost") => true,
            Some(host) => host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback()),
            None => return Err(FetchError::Target("it names no host")),
        };
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if loopback || signed => Ok(Self(url)),
            _ if signed => Err(FetchError::Target("it is neither http nor https")),
            _ => Err(FetchError::Target(
                "it is not https (http is for loopback addresses only)",
            )),
        }
    }

    /// The URL as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// A fetched document.
#[derive(Debug)]
pub struct Document {
    /// The body.
    pub body: Vec<u8>,
    /// How long the server says it stays fresh; `None` when it does not say, zero when it must
    /// not be kept.
    pub lifetime: Option<Duration>,
    /// What to ask by whether it has changed.
    pub etag: Option<String>,
    /// Its type, without parameters, in lower case.
    pub content_type: Option<String>,
}

/// A question that is more than a GET of a URL.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The types that are taken.
    pub accept: &'static str,
    /// The entity tag of what is there already.
    pub etag: Option<&'a str>,
    /// `Prefer` (RFC 7240).
    pub prefer: Option<&'a str>,
    /// Further headers.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Longest time for all of it, instead of the client's.
    pub total: Duration,
}

/// Longest entity tag that is sent back.
const MAX_ETAG: usize = 256;

/// Why a fetch failed. Whose fault: the configuration's (`Target`, `Client`), else the server's.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL may not be fetched.
    #[error("the URL cannot be fetched: {0}")]
    Target(&'static str),
    /// The client cannot be built.
    #[error("the client for fetches cannot be built")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No connection, a broken one, or an answer that is no HTTP.
    #[error("the server could not be reached or broke off")]
    Network(#[source] reqwest::Error),
    /// It took longer than the deadline.
    #[error("the server took longer than {0:?}")]
    Timeout(Duration),
    /// Anything but 200; redirects are never followed.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The body is longer than allowed.
    #[error("the document is larger than {0} bytes")]
    TooLarge(usize),
    /// The body is compressed though that was not asked for.
    #[error("the document is compressed")]
    Encoded,
}

impl FetchError {
    /// A stable word for metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Target(_) | Self::Client(_) => "config",
            Self::Network(_) => "network",
            Self::Timeout(_) => "timeout",
            Self::Status(_) => "status",
            Self::TooLarge(_) => "too_large",
            Self::Encoded => "encoded",
        }
    }
}

/// What is posted.
#[derive(Debug)]
pub struct Post<'p> {
    /// The type of the body.
    pub content_type: &'static str,
    /// The type of the answer.
    pub accept: &'static str,
    /// Sent as `Authorization: Bearer …`.
    pub bearer: Option<&'p Secret>,
    /// The body.
    pub body: Vec<u8>,
}

/// A client for fetches: which authorities it trusts and how much it takes.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    total: Duration,
    max_body: usize,
}

/// What all our clients have in common: whom they trust, and that they go nowhere but where they are sent.
fn bare(authorities: &[Vec<u8>]) -> Result<reqwest::ClientBuilder, FetchError> {
    let tls = client_config(authorities).map_err(|error| FetchError::Client(Box::new(error)))?;
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION"))))
}

impl Fetcher {
    /// A client that trusts these authorities (PEM); an empty list means the public web's roots.
    ///
    /// # Errors
    /// [`FetchError::Client`] when an authority cannot be read.
    pub fn new(authorities: &[Vec<u8>]) -> Result<Self, FetchError> {
        // Refreshes are minutes apart: a kept connection would only be a dead one.
        Self::of(bare(authorities)?.pool_max_idle_per_host(0), MAX_BODY)
    }

    fn of(client: reqwest::ClientBuilder, max_body: usize) -> Result<Self, FetchError> {
        let client = client.build();
        Ok(Self {
            client: client.map_err(|error| FetchError::Client(Box::new(error)))?,
            total: TOTAL_TIMEOUT,
            max_body,
        })
    }

    /// The same client with other bounds.
    #[must_use]
    pub fn with_bounds(self, total: Duration, max_body: usize) -> Self {
        Self {
            total,
            max_body,
            ..self
        }
    }

    /// Fetches one document. Dropping the future ends the fetch.
    ///
    /// # Errors
    /// [`FetchError`]; nothing of the answer's body is in it.
    pub async fn get(&self, target: &Target) -> Result<Document, FetchError> {
        let request = self.client.get(target.0.clone());
        self.read_in_time(request.header(ACCEPT, "application/json"))
            .await
    }

    /// Posts a document and fetches the answer. Dropping the future ends it.
    ///
    /// # Errors
    /// As [`Fetcher::get`].
    pub async fn post(&self, target: &Target, post: Post<'_>) -> Result<Document, FetchError> {
        let mut request = self
            .client
            .post(target.0.clone())
            .header(ACCEPT, post.accept)
            .header(CONTENT_TYPE, post.content_type)
            .body(post.body);
        if let Some(secret) = post.bearer {
            let mut value = b"Bearer ".to_vec();
            value.extend_from_slice(secret.expose());
            let mut value = HeaderValue::from_maybe_shared(bytes::Bytes::from(value))
                .map_err(|error| FetchError::Client(Box::new(error)))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        self.read_in_time(request).await
    }

    /// Fetches one document unless it is still the one with this entity tag: then there is none.
    /// Dropping the future ends the fetch.
    ///
    /// # Errors
    /// As [`Fetcher::get`].
    pub async fn get_unless(
        &self,
        target: &Target,
        etag: Option<&str>,
    ) -> Result<Option<Document>, FetchError> {
        let mut request = self.client.get(target.0.clone()).header(ACCEPT, "*/*");
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        match self.read_in_time(request).await {
            Ok(document) => Ok(Some(document)),
            Err(FetchError::Status(304)) if etag.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fetches one document, as [`Ask`] says; `None` when it is still the one with that entity tag.
    /// Dropping the future ends the fetch.
    ///
    /// # Errors
    /// As [`Fetcher::get`]; a server that says "not modified" without being asked gave an error.
    pub async fn ask(&self, target: &Target, ask: Ask<'_>) -> Result<Option<Document>, FetchError> {
        let mut request = self.client.get(target.0.clone()).header(ACCEPT, ask.accept);
        if let Some(etag) = ask.etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        if let Some(prefer) = ask.prefer {
            request = request.header("prefer", prefer);
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let read = tokio::time::timeout(ask.total, self.read(request)).await;
        match read.unwrap_or(Err(FetchError::Timeout(ask.total))) {
            Ok(document) => Ok(Some(document)),
            Err(FetchError::Status(304)) if ask.etag.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_in_time(&self, request: RequestBuilder) -> Result<Document, FetchError> {
        // One deadline over everything: per-read timeouts let a server drip for ever.
        tokio::time::timeout(self.total, self.read(request))
            .await
            .unwrap_or(Err(FetchError::Timeout(self.total)))
    }

    async fn read(&self, request: RequestBuilder) -> Result<Document, FetchError> {
        let mut response = request
            .send()
            .await
            .map_err(|error| FetchError::Network(error.without_url()))?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(FetchError::Status(status));
        }
        let encoded = response
            .headers()
            .get(CONTENT_ENCODING)
            .is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
        if encoded {
            return Err(FetchError::Encoded);
        }
        let announced = response
            .content_length()
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(0);
        if announced > self.max_body {
            return Err(FetchError::TooLarge(self.max_body));
        }
        let lifetime = lifetime(response.headers(), clock::now());
        let etag = response
            .headers()
            .get(ETAG)
            .and_then(|etag| etag.to_str().ok())
            .filter(|etag| etag.len() <= MAX_ETAG)
            .map(ToOwned::to_owned);
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok()?.split(';').next())
            .map(|kind| kind.trim().to_ascii_lowercase());
        let mut body = Vec::with_capacity(announced);
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| FetchError::Network(error.without_url()))?
        {
            if body.len() + chunk.len() > self.max_body {
                return Err(FetchError::TooLarge(self.max_body));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Document {
            body,
            lifetime,
            etag,
            content_type,
        })
    }
}

/// How long an answer stays fresh (RFC 9111 section 4.2.1), less the time it has already spent in
/// caches.
fn lifetime(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let mut max_age = None;
    for directive in headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let (name, value) = directive
            .split_once('=')
            .map_or((directive, ""), |(name, value)| (name, value));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return Some(Duration::ZERO),
            "max-age" => {
                let seconds = value.trim().trim_matches('"').parse::<u64>().ok();
                max_age = Some(Duration::from_secs(seconds.unwrap_or(0)));
            }
            _ => {}
        }
    }
    if let Some(max_age) = max_age {
        let age = headers
            .get(AGE)
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
            .map_or(Duration::ZERO, Duration::from_secs);
        return Some(max_age.saturating_sub(age));
    }
    // An unreadable date means "already stale" (RFC 9111 section 5.3).
    headers.get(EXPIRES).map(|value| {
        value
            .to_str()
            .ok()
            .and_then(http_date)
            .and_then(|at| at.duration_since(now).ok())
            .unwrap_or(Duration::ZERO)
    })
}

/// Reads an IMF-fixdate such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    use time::format_description::well_known::Rfc2822;
    let text = text.trim().strip_suffix("GMT")?;
    let at = time::OffsetDateTime::parse(&format!("{text}+0000"), &Rfc2822).ok()?;
    Some(at.into())
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests;
