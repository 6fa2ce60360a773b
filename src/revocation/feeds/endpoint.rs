//! End-points that issuers and transmitters post to, on the listeners of clients: they must reach us.
//!
//! A statement is verified by its signature, so anybody may try; hence the bounds: so many bytes, so
//! long a time, and addresses whose statements were refused are slowed down like those that guess
//! credentials. The answers are those of OpenID Connect Back-Channel Logout 1.0 section 2.8 and RFC
//! 8935 section 2, and tell nothing of the inside.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use super::logout::Logout;
use super::stream::{Heeded, Stream};
use crate::authn::Failure;
use crate::body::{self, Body};
use crate::request::InboundRequest;
use crate::revocation::Plane;
use crate::schema::Secret;

/// The most bytes that a post may have.
pub const MAX_POST: usize = 16 * 1024;

/// The longest time from a post's head to its last byte.
pub const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// Where something is posted to.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) place: Place,
    pub(super) taker: Taker,
}

/// Which requests are posts to an end-point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) hosts: Vec<String>,
    pub(super) listeners: Vec<String>,
}

/// Who takes what is posted.
#[derive(Debug)]
pub(super) enum Taker {
    /// Logout tokens.
    Logout(Arc<Logout>),
    /// Security events, from whoever knows the secret.
    Push(Arc<Stream>, Secret),
}

/// What became of a post.
pub struct Delivery {
    /// The answer.
    pub response: Response<Body>,
    /// A stable code for the record: `feed.accepted`, `feed.replayed`, `feed.not_understood`,
    /// `feed.request`, `feed.unauthorized`, `feed.unavailable`, or that of a refused token.
    pub code: &'static str,
    /// What it was about, for the record.
    pub detail: String,
    /// Whether the address that it came from is to be counted as one that guesses.
    pub suspicious: bool,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}

impl Place {
    pub(super) fn takes(&self, request: &InboundRequest) -> bool {
        let among = |names: &[String], name: &str| {
            names.is_empty() || names.iter().any(|known| known == name)
        };
        request.path.as_str() == self.path
            && among(&self.hosts, request.host.name())
            && among(&self.listeners, &request.conn.listener)
    }

    /// Whether one request could be for both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let common = |ours: &[String], theirs: &[String]| {
            ours.is_empty() || theirs.is_empty() || ours.iter().any(|name| theirs.contains(name))
        };
        self.path == other.path
            && common(&self.hosts, &other.hosts)
            && common(&self.listeners, &other.listeners)
    }
}

/// Why a post was not heeded.
#[derive(Debug)]
pub(super) enum Unheeded {
    /// Not of the form that is asked for.
    Request(&'static str),
    /// Without the secret.
    Unauthorized,
    /// Not a statement of the issuer, or not one for us.
    Statement(Failure),
    /// A good statement that says nothing that can be done.
    Claims(&'static str),
    /// A logout token that was heard before.
    Replayed,
    /// It could not be put in force, or not be kept.
    Unavailable(String),
}

impl Endpoint {
    /// Whether the request shows the secret of a transmitter. Such a one is never slowed down: what
    /// it sends wrongly is a fault, and what it sends rightly must not wait for strangers.
    pub fn knows(&self, request: &InboundRequest) -> bool {
        match &self.taker {
            Taker::Logout(_) => false,
            Taker::Push(_, secret) => shows(request, secret),
        }
    }

    /// Takes a post. Ends within [`POST_TIMEOUT`] and the time that a key may be waited for.
    pub async fn receive(&self, plane: &Plane, request: &InboundRequest, body: Body) -> Delivery {
        if request.method != Method::POST {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
            let allow = HeaderValue::from_static("POST");
            response.headers_mut().insert(header::ALLOW, allow);
            return Delivery {
                response,
                code: "feed.request",
                detail: "the method is not POST".to_owned(),
                suspicious: false,
            };
        }
        match &self.taker {
            Taker::Logout(logout) => {
                let heeded = async {
                    let text = form(request, body).await?;
                    logout.heed(&text, plane, request.received_at).await
                };
                logout.answered(heeded.await)
            }
            Taker::Push(stream, secret) => {
                let heeded = async {
                    let text = event(request, body, secret).await?;
                    stream.heed(&text, plane, request.received_at).await
                };
                stream.answered(heeded.await)
            }
        }
    }
}

impl Logout {
    fn answered(&self, heeded: Result<Heeded, Unheeded>) -> Delivery {
        let answer = |status, error: &str, description: &str| {
            let document = json!({"error": error, "error_description": description});
            document_answer(status, &document)
        };
        let response = match &heeded {
            Ok(_) => plain(StatusCode::OK),
            Err(Unheeded::Unavailable(_) | Unheeded::Statement(Failure::Unavailable { .. })) => {
                answer(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "temporarily_unavailable",
                    "Please try again.",
                )
            }
            Err(Unheeded::Request(_)) => answer(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "A form with one logout_token is expected.",
            ),
            Err(_) => answer(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "The logout token was not accepted.",
            ),
        };
        delivery(response, &self.name, &self.metrics, heeded)
    }
}

impl Stream {
    fn answered(&self, heeded: Result<Heeded, Unheeded>) -> Delivery {
        let response = match &heeded {
            Ok(_) => plain(StatusCode::ACCEPTED),
            Err(unheeded) => {
                let (status, error, description) = unheeded.told();
                let document = json!({"err": error, "description": description});
                let mut response = document_answer(status, &document);
                let language = HeaderValue::from_static("en");
                response
                    .headers_mut()
                    .insert(header::CONTENT_LANGUAGE, language);
                if status == StatusCode::UNAUTHORIZED {
                    let challenge = HeaderValue::from_static("Bearer realm=\"security-events\"");
                    response
                        .headers_mut()
                        .insert(header::WWW_AUTHENTICATE, challenge);
                }
                response
            }
        };
        delivery(response, &self.name, &self.metrics, heeded)
    }
}

impl Unheeded {
    /// What a transmitter is told: an error of the registry of RFC 8935 section 7.1, and words.
    pub(super) fn told(&self) -> (StatusCode, &'static str, &'static str) {
        let bad = StatusCode::BAD_REQUEST;
        match self {
            Self::Request(_) => (
                bad,
                "invalid_request",
                "One security event token of bounded size is expected.",
            ),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "authentication_failed",
                "The transmitter's credential is missing or wrong.",
            ),
            Self::Unavailable(_) | Self::Statement(Failure::Unavailable { .. }) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "Please try again.",
            ),
            Self::Statement(Failure::Rejected { code, .. }) => match *code {
                "token.issuer" => (bad, "invalid_issuer", "The issuer is not expected here."),
                "token.audience" => (
                    bad,
                    "invalid_audience",
                    "The audience is not this receiver.",
                ),
                "token.unknown_key" | "token.key_mismatch" | "token.signature" => {
                    (bad, "invalid_key", "The signature could not be verified.")
                }
                _ => (
                    bad,
                    "invalid_request",
                    "The security event token was not accepted.",
                ),
            },
            Self::Statement(_) | Self::Claims(_) | Self::Replayed => (
                bad,
                "invalid_request",
                "The security event token was not accepted.",
            ),
        }
    }

    /// Whether another try could go better.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Statement(Failure::Unavailable { .. })
        )
    }

    /// The code of the record, the outcome in metrics, and what happened.
    pub(super) fn recorded(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::Request(what) => ("feed.request", "refused", (*what).to_owned()),
            Self::Unauthorized => (
                "feed.unauthorized",
                "refused",
                "the transmitter's secret is missing or wrong".to_owned(),
            ),
            Self::Statement(failure) => match failure {
                Failure::Rejected { code, reason, .. } => (code, "refused", reason.clone()),
                Failure::Unavailable { .. } => {
                    ("issuer.unavailable", "failed", failure.to_string())
                }
                Failure::Missing | Failure::Confused => {
                    ("feed.request", "refused", failure.to_string())
                }
            },
            Self::Claims(what) => ("feed.claims", "refused", (*what).to_owned()),
            Self::Replayed => (
                "feed.replayed",
                "replayed",
                "it was heard before".to_owned(),
            ),
            Self::Unavailable(why) => ("feed.unavailable", "failed", why.clone()),
        }
    }
}

fn delivery(
    response: Response<Body>,
    feed: &Arc<str>,
    metrics: &crate::metrics::Metrics,
    heeded: Result<Heeded, Unheeded>,
) -> Delivery {
    let (code, outcome, detail, suspicious) = match heeded {
        Ok(heeded) => {
            // Events are counted where they are heeded; polls bring them too.
            return Delivery {
                response,
                code: heeded.code,
                detail: format!("{feed}: {}", heeded.detail),
                suspicious: false,
            };
        }
        Err(unheeded) => {
            let suspicious = !unheeded.may_pass() && !matches!(unheeded, Unheeded::Replayed);
            let (code, outcome, detail) = unheeded.recorded();
            (code, outcome, detail, suspicious)
        }
    };
    metrics.revocation_event(feed, outcome);
    Delivery {
        response,
        code,
        detail: format!("{feed}: {detail}"),
        suspicious,
    }
}

async fn form(request: &InboundRequest, body: Body) -> Result<String, Unheeded> {
    is_of_type(request, "application/x-www-form-urlencoded")?;
    let body = read(body).await?;
    let mut tokens = form_urlencoded::parse(&body).filter(|(name, _)| name == "logout_token");
    match (tokens.next(), tokens.next()) {
        (Some((_, token)), None) => Ok(token.into_owned()),
        _ => Err(Unheeded::Request("there is not exactly one `logout_token`")),
    }
}

async fn event(request: &InboundRequest, body: Body, secret: &Secret) -> Result<String, Unheeded> {
    // Before the body: a stranger's is not even read.
    if !shows(request, secret) {
        return Err(Unheeded::Unauthorized);
    }
    is_of_type(request, "application/secevent+jwt")?;
    let body = read(body).await?;
    String::from_utf8(body).map_err(|_| Unheeded::Request("it is not text"))
}

fn shows(request: &InboundRequest, secret: &Secret) -> bool {
    let presented = request
        .single(&header::AUTHORIZATION)
        .ok()
        .flatten()
        .and_then(|field| field.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    presented.is_some_and(|(_, token)| bool::from(secret.expose().ct_eq(token)))
}

fn is_of_type(request: &InboundRequest, expected: &str) -> Result<(), Unheeded> {
    let given = request.single(&header::CONTENT_TYPE).ok().flatten();
    let given = given.and_then(|field| field.to_str().ok());
    let given = given.and_then(|text| text.split(';').next()).map(str::trim);
    if given.is_some_and(|given| given.eq_ignore_ascii_case(expected)) {
        Ok(())
    } else {
        Err(Unheeded::Request("its content type is another"))
    }
}

async fn read(body: Body) -> Result<Vec<u8>, Unheeded> {
    let whole = Limited::new(body, MAX_POST).collect();
    match timeout(POST_TIMEOUT, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Unheeded::Request("it is too large"))
        }
        Ok(Err(_)) => Err(Unheeded::Request("it broke off")),
        Err(_) => Err(Unheeded::Request("it came too slowly")),
    }
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    let no_store = HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    response
}

fn document_answer(status: StatusCode, document: &serde_json::Value) -> Response<Body> {
    let mut response = plain(status).map(|_| body::full(document.to_string()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
