//! Every way to be turned away, and the only place that gives a failure its face.
//!
//! Three audiences, three texts. The client gets [`Public`], which says nothing of the inside. The
//! record gets `Display` and the chain of sources. Metrics get [`Public::code`]. The matches are
//! exhaustive on purpose: a new failure must choose its face.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;

use crate::authn;
use crate::authz::{Denial, Reason, StepUp};
use crate::body::{self, Body};
use crate::limit::{Exceeded, Quota};
use crate::request::{ConnInfo, InboundRequest, Malformed, RequestId, UpgradeFault};
use crate::revocation::{Revoked, What};
use crate::tls::{Lapse, PeerCertificate};
use crate::upstream::{self, RequestBodyFault};

/// How much is left (draft-ietf-httpapi-ratelimit-headers).
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Longest text in `grpc-message`, bytes before they are encoded.
const MAX_GRPC_MESSAGE: usize = 1024;
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Why a request was not forwarded, or got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// It can be read in several ways, or not at all.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Nothing is served under this host, path and method.
    #[error("no route matches")]
    NoRoute,
    /// We do not know who it is from.
    #[error("{failure}")]
    Unauthenticated {
        /// What went wrong.
        failure: authn::Failure,
        /// Whether a bearer token could have opened the route.
        bearer: bool,
    },
    /// What they came with was good once.
    #[error(transparent)]
    Revoked(#[from] Revoked),
    /// The connection was opened with a certificate that is good no longer; it ends.
    #[error("{lapse}{}", named(.certificate.as_deref()))]
    Lapsed {
        /// Why not.
        lapse: Lapse,
        /// Which one.
        certificate: Option<Arc<PeerCertificate>>,
    },
    /// We know who it is from, and no.
    #[error("denied: {}", .0.reason.code())]
    Denied(Box<Denial>),
    /// Too much.
    #[error(transparent)]
    Throttled(#[from] Exceeded),
    /// The upstream did not answer.
    #[error(transparent)]
    Upstream(#[from] upstream::Failure),
    /// It took too long to decide or to get an answer.
    #[error("the deadline for the whole request has passed")]
    DeadlinePassed,
    /// The gateway is leaving, or has more to do than it can bound.
    #[error("the gateway cannot take this request: {0}")]
    Overloaded(&'static str),
    /// Our own fault.
    #[error("a fault inside the gateway")]
    Internal,
}

/// A certificate, for the record.
fn named(certificate: Option<&PeerCertificate>) -> String {
    certificate.map_or_else(String::new, |certificate| {
        let (serial, issuer) = (&certificate.serial, &certificate.issuer);
        format!(": {}, serial {serial} of {issuer}", certificate.subject)
    })
}

impl Refusal {
    /// The certificate of this connection is good no longer.
    pub fn lapsed(lapse: Lapse, conn: &ConnInfo) -> Self {
        let tls = conn.tls.as_ref();
        Self::Lapsed {
            lapse,
            certificate: tls.and_then(|tls| tls.peer_certificate.clone()),
        }
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(Box::new(denial))
    }
}

/// What the client may learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// The HTTP status: 4xx or 5xx, unless a policy with `input: envoy` chose another.
    pub status: StatusCode,
    /// A stable code for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub title: &'static str,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
    /// Whether the connection is beyond trust and ends with this answer.
    pub close: bool,
}

/// What an answer needs to know of its request.
#[derive(Debug)]
pub struct Addressee {
    /// The request's id.
    pub id: RequestId,
    /// gRPC calls get their status in trailers.
    pub grpc: bool,
    /// Whether the connection can be told to close (HTTP/1).
    pub http1: bool,
    /// The host, for the challenge's realm; told by [`Addressee::challenged`].
    pub realm: Option<String>,
}

impl Addressee {
    /// The addressee of a request that could be read.
    pub fn of(request: &InboundRequest) -> Self {
        Self {
            id: request.id,
            grpc: request.is_grpc(),
            http1: request.version <= http::Version::HTTP_11,
            realm: None,
        }
    }

    /// The answer will say how to prove who one is, for this host.
    pub fn challenged(&mut self, request: &InboundRequest) {
        self.realm = Some(request.host.name().to_owned());
    }
}

impl Refusal {
    /// The face of this refusal.
    pub fn public(&self) -> Public {
        let face = |status: StatusCode, code, title| Public {
            status,
            code,
            title,
            retry_after: None,
            close: false,
        };
        match self {
            Self::Malformed(malformed) => {
                let (status, code, title) = match malformed {
                    Malformed::Host
                    | Malformed::HostMismatch
                    | Malformed::Scheme
                    | Malformed::Path(_)
                    | Malformed::Query
                    | Malformed::Framing
                    | Malformed::HeaderValue => (
                        StatusCode::BAD_REQUEST,
                        "bad_request",
                        "The request is malformed or ambiguous.",
                    ),
                    Malformed::Method => (
                        StatusCode::NOT_IMPLEMENTED,
                        "method_not_supported",
                        "The method is not supported.",
                    ),
                    Malformed::Expectation => (
                        StatusCode::EXPECTATION_FAILED,
                        "expectation_failed",
                        "The expectation cannot be met.",
                    ),
                    Malformed::Misdirected => (
                        StatusCode::MISDIRECTED_REQUEST,
                        "misdirected",
                        "This connection does not serve that host.",
                    ),
                    Malformed::Upgrade(UpgradeFault::Protocol) => (
                        // RFC 9220 section 3.
                        StatusCode::NOT_IMPLEMENTED,
                        "protocol_not_supported",
                        "The protocol is not supported.",
                    ),
                    Malformed::Upgrade(UpgradeFault::Version) => (
                        // RFC 6455 section 4.2.2.
                        StatusCode::UPGRADE_REQUIRED,
                        "upgrade_version",
                        "The version of the protocol is not supported.",
                    ),
                    Malformed::Upgrade(
                        UpgradeFault::Several
                        | UpgradeFault::Connection
                        | UpgradeFault::Method
                        | UpgradeFault::Body
                        | UpgradeFault::Key
                        | UpgradeFault::Target,
                    ) => (
                        StatusCode::BAD_REQUEST,
                        "bad_upgrade",
                        "The request for another protocol is malformed.",
                    ),
                    Malformed::TooLarge => (
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "body_too_large",
                        "The request body is too large.",
                    ),
                };
                Public {
                    close: !matches!(malformed, Malformed::Misdirected),
                    ..face(status, code, title)
                }
            }
            Self::NoRoute => face(StatusCode::NOT_FOUND, "no_route", "Nothing is served here."),
            Self::Unauthenticated { failure, .. } => match failure {
                authn::Failure::Missing => face(
                    StatusCode::UNAUTHORIZED,
                    "unauthenticated",
                    "Credentials are required.",
                ),
                authn::Failure::Rejected { .. } => face(
                    StatusCode::UNAUTHORIZED,
                    "unauthenticated",
                    "The credentials were not accepted.",
                ),
                authn::Failure::Confused => face(
                    StatusCode::BAD_REQUEST,
                    "several_credentials",
                    "The request carries more than one credential.",
                ),
                authn::Failure::Unavailable { .. } => Public {
                    retry_after: Some(Duration::from_secs(5)),
                    ..face(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "authentication_unavailable",
                        "Credentials cannot be checked at the moment.",
                    )
                },
            },
            Self::Revoked(revoked) => match revoked.what {
                // Nothing is wrong with the credential as far as anybody knows: the gateway cannot
                // find out, as when an issuer's keys are not there.
                What::Stale => Public {
                    retry_after: Some(Duration::from_secs(5)),
                    ..face(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "authentication_unavailable",
                        "Credentials cannot be checked at the moment.",
                    )
                },
                // A new token helps against the last one, too.
                What::Token
                | What::Subject
                | What::Session
                | What::Client
                | What::Key
                | What::Certificate
                | What::Version
                | What::Old => face(
                    StatusCode::UNAUTHORIZED,
                    "unauthenticated",
                    "The credentials were not accepted.",
                ),
            },
            Self::Lapsed {
                lapse: Lapse::Unknown,
                ..
            } => Public {
                retry_after: Some(Duration::from_secs(5)),
                close: true,
                ..face(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "authentication_unavailable",
                    "Credentials cannot be checked at the moment.",
                )
            },
            Self::Lapsed {
                lapse: Lapse::Revoked | Lapse::Expired | Lapse::Authority,
                ..
            } => Public {
                close: true,
                ..face(
                    StatusCode::UNAUTHORIZED,
                    "unauthenticated",
                    "The credentials were not accepted.",
                )
            },
            // Nothing was decided: the policy is still on its way.
            Self::Denied(denial) if denial.reason == Reason::Unavailable => Public {
                retry_after: Some(Duration::from_secs(5)),
                ..face(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "policy_unavailable",
                    "Permissions cannot be checked at the moment.",
                )
            },
            Self::Denied(denial) if denial.reason == Reason::Body => face(
                StatusCode::BAD_REQUEST,
                "body_unreadable",
                "The request body cannot be read in one way.",
            ),
            Self::Denied(denial) => {
                let status = match (&denial.step_up, denial.status) {
                    // RFC 9470 section 3: a stronger login is asked for with a 401.
                    (Some(_), _) => StatusCode::UNAUTHORIZED,
                    (None, Some(status)) => status,
                    (None, None) => StatusCode::FORBIDDEN,
                };
                face(status, "denied", "You are not allowed to do this.")
            }
            Self::Throttled(exceeded) => Public {
                retry_after: Some(exceeded.retry_after),
                ..face(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limited",
                    "Too many requests.",
                )
            },
            Self::Upstream(failure) => match failure {
                upstream::Failure::Unreachable(_) | upstream::Failure::Broken(_) => face(
                    StatusCode::BAD_GATEWAY,
                    "upstream_unreachable",
                    "The service behind this address cannot be reached.",
                ),
                upstream::Failure::Saturated => Public {
                    retry_after: Some(Duration::from_secs(1)),
                    ..face(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "upstream_saturated",
                        "The service behind this address is busy.",
                    )
                },
                upstream::Failure::Slow(_) => face(
                    StatusCode::GATEWAY_TIMEOUT,
                    "upstream_timeout",
                    "The service behind this address did not answer in time.",
                ),
                upstream::Failure::RequestBody(fault) => {
                    let (status, code, title) = match fault {
                        RequestBodyFault::TooLarge => (
                            StatusCode::PAYLOAD_TOO_LARGE,
                            "body_too_large",
                            "The request body is too large.",
                        ),
                        RequestBodyFault::TooSlow => (
                            StatusCode::REQUEST_TIMEOUT,
                            "body_timeout",
                            "The request body came too slowly.",
                        ),
                        RequestBodyFault::BrokenOff => (
                            StatusCode::BAD_REQUEST,
                            "body_broken_off",
                            "The request body was incomplete.",
                        ),
                    };
                    Public {
                        close: true,
                        ..face(status, code, title)
                    }
                }
            },
            Self::DeadlinePassed => face(
                StatusCode::GATEWAY_TIMEOUT,
                "deadline",
                "The request took too long.",
            ),
            Self::Overloaded(_) => Public {
                retry_after: Some(Duration::from_secs(1)),
                close: true,
                ..face(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "overloaded",
                    "Please try again.",
                )
            },
            Self::Internal => face(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Something went wrong.",
            ),
        }
    }

    /// The stable code of the record: finer than the client's, never shown to it.
    pub fn code(&self) -> &str {
        match self {
            Self::Malformed(_) | Self::NoRoute | Self::Throttled(_) | Self::Upstream(_) => {
                self.public().code
            }
            Self::Unauthenticated { failure, .. } => match failure {
                authn::Failure::Missing => "credential.missing",
                authn::Failure::Rejected { code, .. } => code,
                authn::Failure::Unavailable { .. } => "issuer.unavailable",
                authn::Failure::Confused => "credential.several",
            },
            Self::Revoked(revoked) => revoked.code(),
            Self::Lapsed { lapse, .. } => lapse.code(),
            Self::Denied(denial) => denial.reason.code(),
            Self::DeadlinePassed | Self::Overloaded(_) | Self::Internal => self.public().code,
        }
    }

    /// The client's word when a permission that was given ends like this.
    pub fn lapse(&self) -> &'static str {
        match self {
            Self::Revoked(_) => "revoked",
            Self::Lapsed { lapse, .. } => match lapse {
                Lapse::Revoked | Lapse::Authority => "revoked",
                Lapse::Expired => "expired",
                Lapse::Unknown => "unavailable",
            },
            Self::Unauthenticated { failure, .. } => match failure {
                authn::Failure::Rejected { code, .. } if code.ends_with(".expired") => "expired",
                authn::Failure::Unavailable { .. } => "unavailable",
                authn::Failure::Rejected { .. }
                | authn::Failure::Missing
                | authn::Failure::Confused => "unauthenticated",
            },
            Self::Denied(_) | Self::NoRoute | Self::Malformed(_) => "denied",
            Self::Throttled(_)
            | Self::Upstream(_)
            | Self::DeadlinePassed
            | Self::Overloaded(_)
            | Self::Internal => "unavailable",
        }
    }

    /// The status of a gRPC call that ends like this.
    pub fn grpc_status(&self) -> u16 {
        grpc_status(self.public().status)
    }

    /// The answer to the client.
    pub fn into_response(self, to: &Addressee, decision_id: Option<&str>) -> Response<Body> {
        let public = self.public();
        let message = match &self {
            Self::Denied(denial) => denial.message.as_deref().or(denial.body.as_deref()),
            Self::Malformed(_)
            | Self::NoRoute
            | Self::Unauthenticated { .. }
            | Self::Revoked(_)
            | Self::Lapsed { .. }
            | Self::Throttled(_)
            | Self::Upstream(_)
            | Self::DeadlinePassed
            | Self::Overloaded(_)
            | Self::Internal => None,
        };
        let own = match &self {
            Self::Denied(denial) => chosen(denial, &public),
            Self::Malformed(_)
            | Self::NoRoute
            | Self::Unauthenticated { .. }
            | Self::Revoked(_)
            | Self::Lapsed { .. }
            | Self::Throttled(_)
            | Self::Upstream(_)
            | Self::DeadlinePassed
            | Self::Overloaded(_)
            | Self::Internal => None,
        };
        let mut response = match own {
            _ if to.grpc => grpc_answer(&public, message),
            Some(own) => own,
            None => problem(&public, message, to, decision_id),
        };
        let headers = response.headers_mut();
        if public.status == StatusCode::UNAUTHORIZED
            && let Some(challenge) = self.challenge(to)
        {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(wait) = public.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if public.close && to.http1 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        match self {
            Self::Denied(denial) => {
                if denial
                    .headers
                    .iter()
                    .any(|(name, _)| *name == header::CACHE_CONTROL)
                {
                    headers.remove(header::CACHE_CONTROL);
                }
                for (name, value) in denial.headers {
                    // Of what type a body is says whose body it is.
                    if name != header::CONTENT_TYPE {
                        headers.append(name, value);
                    }
                }
            }
            Self::Throttled(exceeded) => quota_headers(&exceeded.quota, headers),
            Self::Malformed(Malformed::Upgrade(UpgradeFault::Version)) => {
                headers.insert(
                    header::SEC_WEBSOCKET_VERSION,
                    HeaderValue::from_static("13"),
                );
                if to.http1 {
                    // RFC 9110 section 15.5.22: 426 says what to upgrade to.
                    let upgrade = HeaderValue::from_static("websocket");
                    headers.insert(header::UPGRADE, upgrade);
                    headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
                }
            }
            Self::Malformed(_)
            | Self::NoRoute
            | Self::Unauthenticated { .. }
            | Self::Revoked(_)
            | Self::Lapsed { .. }
            | Self::Upstream(_)
            | Self::DeadlinePassed
            | Self::Overloaded(_)
            | Self::Internal => {}
        }
        response
    }

    /// `WWW-Authenticate` (RFC 6750 section 3, RFC 9470 section 3); only where a bearer token helps.
    fn challenge(&self, to: &Addressee) -> Option<HeaderValue> {
        let realm = to.realm.as_deref().unwrap_or("portcullis");
        let text = match self {
            Self::Unauthenticated {
                bearer: true,
                failure: authn::Failure::Rejected { .. },
            }
            | Self::Revoked(Revoked { bearer: true, .. }) => {
                format!(
                    "Bearer realm=\"{realm}\", error=\"invalid_token\", \
                     error_description=\"The token was not accepted\""
                )
            }
            Self::Unauthenticated { bearer: true, .. } => format!("Bearer realm=\"{realm}\""),
            Self::Denied(denial) => step_up(realm, denial.step_up.as_ref()?),
            Self::Unauthenticated { bearer: false, .. }
            | Self::Revoked(Revoked { bearer: false, .. })
            | Self::Lapsed { .. }
            | Self::Malformed(_)
            | Self::NoRoute
            | Self::Throttled(_)
            | Self::Upstream(_)
            | Self::DeadlinePassed
            | Self::Overloaded(_)
            | Self::Internal => return None,
        };
        HeaderValue::from_str(&text).ok()
    }
}

fn step_up(realm: &str, step_up: &StepUp) -> String {
    let mut text = format!("Bearer realm=\"{realm}\", error=\"insufficient_user_authentication\"");
    if !step_up.acr_values.is_empty() {
        // The values come from the policy; a quote in one must not end the parameter.
        let values = step_up.acr_values.join(" ").replace(['"', '\\'], "");
        text.push_str(&format!(", acr_values=\"{values}\""));
    }
    if let Some(max_age) = step_up.max_age {
        text.push_str(&format!(", max_age=\"{max_age}\""));
    }
    text
}

/// The answer in a policy's own words; `None` when it left them to us.
fn chosen(denial: &Denial, public: &Public) -> Option<Response<Body>> {
    let typed = denial.headers.iter().rev();
    let typed = typed
        .clone()
        .find(|(name, _)| *name == header::CONTENT_TYPE);
    // Answers that are no errors have none of our words either, and some have no body at all.
    let bodiless = matches!(public.status.as_u16(), 204 | 205 | 304);
    let success = public.status.as_u16() < 400;
    let text = match &denial.body {
        Some(text) => &**text,
        None if success => "",
        None => return None,
    };
    let mut response = Response::new(if bodiless || text.is_empty() {
        body::empty()
    } else {
        body::full(text.as_bytes().to_vec())
    });
    *response.status_mut() = public.status;
    let headers = response.headers_mut();
    if !bodiless && !text.is_empty() {
        let plain = HeaderValue::from_static("text/plain");
        let kind = typed.map_or(plain, |(_, kind)| kind.clone());
        headers.insert(header::CONTENT_TYPE, kind);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

/// An RFC 9457 document.
fn problem(
    public: &Public,
    message: Option<&str>,
    to: &Addressee,
    decision_id: Option<&str>,
) -> Response<Body> {
    let mut document = json!({
        "type": "about:blank",
        "title": message.unwrap_or(public.title),
        "status": public.status.as_u16(),
        "code": public.code,
        "request_id": to.id.as_str(),
    });
    if let (Some(members), Some(id)) = (document.as_object_mut(), decision_id) {
        members.insert("decision_id".to_owned(), id.into());
    }
    let mut response = Response::new(body::full(document.to_string()));
    *response.status_mut() = public.status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A trailers-only answer (gRPC over HTTP/2, "Responses").
fn grpc_answer(public: &Public, message: Option<&str>) -> Response<Body> {
    let mut response = Response::new(body::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        HeaderName::from_static("grpc-status"),
        grpc_status(public.status).into(),
    );
    // A policy may say more than fits into a header block.
    let message = message.unwrap_or(public.title);
    let end = message.floor_char_boundary(MAX_GRPC_MESSAGE);
    let message = grpc_message(message.get(..end).unwrap_or_default());
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    response
}

/// The gRPC status code that says the same as an HTTP status.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        401 => 16,
        403 => 7,
        404 => 12,
        408 | 504 => 4,
        413 | 429 => 8,
        500 => 13,
        501 => 12,
        502 | 503 => 14,
        400..=499 => 3,
        _ => 2,
    }
}

/// Percent-encodes what may not stand in `grpc-message`.
fn grpc_message(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'%' | ..0x20 | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
        out
    })
}

/// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), unless the answer has
/// them already.
pub fn quota_headers(quota: &Quota, headers: &mut http::HeaderMap) {
    let Some(terms) = &quota.terms else {
        return;
    };
    if headers.contains_key(RATE_LIMIT) {
        return;
    }
    let (mut left, mut right) = (itoa::Buffer::new(), itoa::Buffer::new());
    let (remaining, reset) = (left.format(quota.remaining), right.format(quota.reset));
    let parts = ["\"", &*terms.name, "\";r=", remaining, ";t=", reset];
    // Of exactly this size, or it would be copied once more.
    let mut state = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    state.extend(parts);
    if let (Some(policy), Ok(state)) = (&terms.policy, HeaderValue::try_from(state)) {
        headers.insert(RATE_LIMIT_POLICY, policy.clone());
        headers.insert(RATE_LIMIT, state);
    }
}
