//! What upstreams get: identity headers, forwarding headers, trace context, the assertion.
//!
//! Every header named in the `identity` section is ours: [`IdentityHeaders::owned`] has it removed
//! from whatever arrives, and it is written here when there is a value, and absent otherwise.

mod forwarding;
pub(super) mod hops;
pub(super) mod source;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::source::{Facts, Source};
use super::Forwarding;
use super::assertion::{Assertion, AssertionConfig, Statement};
use crate::authn::Caller;
use crate::authz::{DecidedBy, Edits};
use crate::body::Body;
use crate::document::Value;
use crate::request::{InboundRequest, Lines, RequestId, Rules, is_hop_by_hop};
use crate::schema::{Compile, Named};

/// Most identity headers.
const MAX_HEADERS: usize = 64;

/// Headers that already mean something to HTTP, to us, or to the application.
const RESERVED: [&str; 26] = [
    "accept",
    "authorization",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "origin",
    "range",
    "set-cookie",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-uri",
    "x-real-ip",
    "x-request-id",
];

/// Longest lines that are remembered of an identity, in bytes; what is longer is written anew for each
/// request.
const LONGEST_MEMO: usize = 4 * 1024;

/// How many more fields there are, mostly.
const MORE: usize = 16;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The `identity` section: what upstreams learn of the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityConfig {
    /// Header → where its value comes from: `subject`, `issuer`, `id`, `client`, `method`, `scopes`,
    /// `roles`, `token_id`, `claim:dotted.path`, `certificate:sha256`, `certificate:subject`,
    /// `certificate:spiffe`, `policy:dotted.path` (the policy's `identity` object) or `text:constant`.
    ///
    /// These headers are removed from every request and written when there is a value; for an
    /// anonymous caller only `policy:` and `text:` have one. Lists are joined by `,`. Everything
    /// outside visible ASCII, `%` itself, and a comma inside a list's element are percent-encoded. A
    /// value over 8 KiB, an object, and an empty value are left out.
    pub headers: Named<String>,
    /// A short-lived JWT that states who was allowed what; absent means none.
    pub assertion: Option<AssertionConfig>,
}

/// Which identity headers go upstream; compiled from the `identity` section.
#[derive(Debug, Default)]
pub struct IdentityHeaders {
    config: IdentityConfig,
    /// Names this object among all that this process ever had, for what is remembered of identities.
    id: u64,
    /// Those whose values are the same in all requests of one identity.
    of_identity: Vec<(HeaderName, Source)>,
    others: Vec<(HeaderName, Source)>,
    assertion: Option<Assertion>,
    rules: Arc<Rules>,
}

impl IdentityConfig {
    /// Compiles the section; takes over `previous` (and its signing key) when nothing changed.
    pub fn compile(
        self,
        previous: Option<&Arc<IdentityHeaders>>,
        cx: &mut Compile,
    ) -> Option<Arc<IdentityHeaders>> {
        let errors = cx.errors();
        let headers = cx.at("headers", |cx| self.headers(cx));
        let assertion = self.assertion.as_ref().and_then(|config| {
            cx.at("assertion", |cx| {
                let name = cx.at("header", |cx| header_name(&config.header, cx))?;
                if headers.iter().any(|(other, _)| *other == name) {
                    cx.problem(format!("`{name}` is an identity header already"));
                }
                let before = previous.and_then(|previous| previous.assertion.as_ref());
                config.compile(name, before, cx)
            })
        });
        if cx.errors() > errors {
            return None;
        }
        if let Some(previous) = previous
            && previous.config == self
            && same_keys(previous.assertion.as_ref(), assertion.as_ref())
        {
            return Some(Arc::clone(previous));
        }
        let names = headers.iter().map(|(name, _)| name);
        let owned = names.chain(assertion.as_ref().map(|assertion| &assertion.header));
        let rules = Rules {
            owned: owned.cloned().collect(),
            ..Rules::default()
        };
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (of_identity, others) = headers
            .into_iter()
            .partition(|(_, source)| source.is_of_identity());
        Some(Arc::new(IdentityHeaders {
            config: self,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            of_identity,
            others,
            assertion,
            rules: Arc::new(rules),
        }))
    }

    fn headers(&self, cx: &mut Compile) -> Vec<(HeaderName, Source)> {
        if self.headers.len() > MAX_HEADERS {
            cx.problem(format!("names more than {MAX_HEADERS} headers"));
        }
        let mut headers: Vec<(HeaderName, Source)> = Vec::new();
        for (name, expression) in &self.headers {
            cx.at(name.as_str(), |cx| {
                let source = Source::parse(expression);
                if let Err(why) = &source {
                    cx.problem_help(
                        why,
                        "write subject, issuer, id, client, method, scopes, roles, token_id, \
                         claim:PATH, policy:PATH, certificate:sha256|subject|spiffe or text:CONSTANT",
                    );
                }
                let Some(name) = header_name(name, cx) else {
                    return;
                };
                if headers.iter().any(|(other, _)| *other == name) {
                    cx.problem_help(
                        format!("`{name}` is named twice, in different spellings"),
                        "header names are the same in upper and lower case; keep one",
                    );
                }
                if let Ok(source) = source {
                    headers.push((name, source));
                }
            });
        }
        headers
    }
}

fn same_keys(before: Option<&Assertion>, now: Option<&Assertion>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => before.same_keys(now),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// A header that may be ours.
fn header_name(name: &str, cx: &mut Compile) -> Option<HeaderName> {
    let lower = name.to_ascii_lowercase();
    let plain = !lower.is_empty()
        && lower
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !plain {
        cx.problem_help(
            format!("`{name}` cannot name an identity header"),
            "use letters, digits and `-`: servers read `_` and `-` as the same, or drop one",
        );
        return None;
    }
    let taken = RESERVED.contains(&lower.as_str()) || is_hop_by_hop(&lower);
    if taken {
        cx.problem_help(
            format!("`{name}` has a meaning of its own in HTTP"),
            "use a name of your own, such as x-user-id",
        );
        return None;
    }
    HeaderName::try_from(lower).ok()
}

impl IdentityHeaders {
    /// The names of all headers that only we write: identity headers and the assertion's.
    pub fn owned(&self) -> Vec<HeaderName> {
        self.rules.owned.to_vec()
    }

    /// Answers for the gateway's own key set (`/.well-known/portcullis/jwks.json`), so that
    /// upstreams can verify assertions; `None` for every other path.
    pub fn well_known(&self, request: &InboundRequest) -> Option<http::Response<Body>> {
        self.assertion.as_ref()?.well_known(request)
    }

    /// The owned names, as a body needs them to clean its trailers.
    pub(super) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// The fields of the request as it leaves: the client's, and everything that is ours.
    pub fn fields<'a>(&'a self, about: &About<'a>) -> Fields<'a> {
        let About {
            request,
            caller,
            forwarding,
            ..
        } = about;
        let certificate = request.conn.tls.as_ref();
        let facts = Facts {
            caller,
            policy: about.policy,
            certificate: certificate.and_then(|tls| tls.peer_certificate.as_deref()),
        };
        let mut ours = Vec::new();
        for (name, source) in &self.others {
            if let Some(value) = source.value(facts) {
                ours.push((name.clone(), value));
            }
        }
        if let Some(assertion) = &self.assertion {
            let statement = Statement {
                upstream: about.upstream,
                request,
                caller,
                policy: about.policy,
                decided_by: about.decided_by,
                decision_id: forwarding.decision_id,
                edits: about.edits,
                route: forwarding.route,
            };
            if let Some(value) = assertion.sign(&statement) {
                ours.push((assertion.header.clone(), value));
            }
        }
        if let Some(edits) = about.edits {
            // Never ours: see `Permit::within`, and once more here, where the request leaves.
            let set = edits.headers.iter();
            let set = set.filter(|(name, _)| !self.rules.owns(name.as_str()));
            ours.extend(set.cloned());
        }
        if let Some(state) = &forwarding.trace.state
            && let Ok(state) = HeaderValue::from_str(state)
        {
            ours.push((TRACESTATE, state));
        }
        Fields {
            theirs: &request.headers,
            edits: about.edits,
            forward_authorization: about.forward_authorization,
            owned: &self.rules.owned,
            ours,
            shared: [self.of_caller(facts), forwarding::lines(request)],
            // W3C trace context: our span is the parent of the upstream's.
            traceparent: forwarding.trace.traceparent(),
            id: request.id,
        }
    }

    /// The headers that say who the caller is.
    fn of_caller<'a>(&self, facts: Facts<'a>) -> Cow<'a, Lines> {
        let write = || {
            let fields = self.of_identity.iter();
            let fields =
                fields.filter_map(|(name, source)| Some((name.clone(), source.value(facts)?)));
            fields.collect::<Lines>()
        };
        let Some(identity) = facts.caller.identity() else {
            return Cow::Owned(Lines::default());
        };
        if let Some((by, lines)) = identity.told.upstream.get() {
            // What was written by another configuration stays there until the credential is read anew.
            return if *by == self.id {
                Cow::Borrowed(lines)
            } else {
                Cow::Owned(write())
            };
        }
        let lines = write();
        if lines.text().len() > LONGEST_MEMO {
            return Cow::Owned(lines);
        }
        let (_, lines) = identity.told.upstream.get_or_init(|| (self.id, lines));
        Cow::Borrowed(lines)
    }
}

/// The fields of a request as it leaves, without `Host`. The client's are read where they lie: to
/// move them into another map costs more than to write them.
#[derive(Debug)]
pub struct Fields<'a> {
    theirs: &'a HeaderMap,
    edits: Option<&'a Edits>,
    forward_authorization: bool,
    owned: &'a [HeaderName],
    /// Written for this request alone.
    ours: Vec<(HeaderName, HeaderValue)>,
    /// Those of the caller, and those of the way here.
    shared: [Cow<'a, Lines>; 2],
    traceparent: [u8; 55],
    id: RequestId,
}

impl<'a> Fields<'a> {
    /// Those of a client.
    #[cfg(test)]
    pub(super) fn of(theirs: &'a HeaderMap) -> Self {
        Self {
            theirs,
            edits: None,
            forward_authorization: false,
            owned: &[],
            ours: Vec::new(),
            shared: Default::default(),
            traceparent: [b'0'; 55],
            id: RequestId::random(),
        }
    }

    /// Those that are written one by one; the others stand in [`Fields::lines`]. Those of one name
    /// stand together.
    pub fn single(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let theirs = self.theirs.iter().filter(|(name, _)| self.travels(name));
        theirs.chain(self.ours.iter().map(|(name, value)| (name, value)))
    }

    /// Whole lines, one piece behind the other, of all the fields that are not among the single ones.
    pub fn lines(&self) -> [&[u8]; 7] {
        let [caller, way] = &self.shared;
        [
            caller.text(),
            way.text(),
            b"traceparent: ",
            &self.traceparent,
            b"\r\nx-request-id: ",
            self.id.as_bytes(),
            b"\r\n",
        ]
    }

    /// All fields as a map.
    pub(super) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.theirs.keys_len() + self.ours.len() + MORE);
        let shared = self.shared.iter().flat_map(|lines| lines.fields());
        let shared = shared.map(|(name, value)| (name, value));
        for (name, value) in self.single().chain(shared) {
            map.append(name.clone(), value.clone());
        }
        let made: [(_, &[u8]); 2] = [
            (TRACEPARENT, &self.traceparent),
            (REQUEST_ID, self.id.as_bytes()),
        ];
        for (name, value) in made {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                map.append(name, value);
            }
        }
        map
    }

    /// Whether a field of the client's goes on. What only we write was removed at the door already;
    /// it is asked once more here, where the request leaves.
    fn travels(&self, name: &HeaderName) -> bool {
        if self.edits.is_some_and(|edits| edits.replaces(name)) {
            return false;
        }
        if *name == header::AUTHORIZATION {
            return self.forward_authorization;
        }
        let ours = matches!(
            name.as_str(),
            "forwarded"
                | "traceparent"
                | "tracestate"
                | "x-forwarded-for"
                | "x-forwarded-host"
                | "x-forwarded-port"
                | "x-forwarded-proto"
                | "x-request-id"
        );
        !ours && !self.owned.contains(name)
    }
}

/// What the headers of one request are written from.
#[derive(Debug)]
pub struct About<'a> {
    /// The upstream's name.
    pub upstream: &'a str,
    /// The request.
    pub request: &'a InboundRequest,
    /// Who was allowed.
    pub caller: &'a Caller,
    /// The policy's `identity` object.
    pub policy: Option<&'a Value>,
    /// What the policy changes of the request.
    pub edits: Option<&'a Edits>,
    /// Which policy allowed it.
    pub decided_by: &'a DecidedBy,
    /// What the request path knows beside the request itself.
    pub forwarding: &'a Forwarding<'a>,
    /// Whether the client's `Authorization` goes on.
    pub forward_authorization: bool,
}

#[cfg(test)]
mod tests;
