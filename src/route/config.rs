//! The `routes` section: what is said, and what is needed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Route;
use super::table::{Conditions, Entry, HostPattern, RouteTable};
use super::template::Template;
use crate::audit::{AuditConfig, RecordConfig};
use crate::authn::Chain;
use crate::authn::client_certificate::ClientCertificate;
use crate::authn::jwt::Issuer;
use crate::authz::Policy;
use crate::document::{Value, object};
use crate::limit::{LimitSet, Limits};
use crate::listener::Listener;
use crate::metrics::RouteCounts;
use crate::request::{Host, PathRules};
use crate::revocation::RouteRevocationConfig;
use crate::schema::{Compile, Named, Span, Turn, known_names};
use crate::tunnel::{TunnelConfig, UpgradeName};
use crate::upstream::{Bounds, Upstream};

/// The methods of a route that names none.
pub const DEFAULT_METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// The policy of routes that are open to everybody.
const PUBLIC: &str = "public";

/// What may stand in `authn` beside the names of issuers.
const METHOD_WORDS: [&str; 2] = ["client_certificate", "anonymous"];

/// Where the gateway answers for itself: its keys, renewals.
const RESERVED: &str = "/.well-known/portcullis/";

/// The most header conditions on one route.
const MAX_HEADERS: usize = 16;

/// The most hosts on one route.
const MAX_HOSTS: usize = 256;

/// One entry of the `routes` list: which requests it takes, who may send them, and where they go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The route's name in records, metrics and policies; unique in the file.
    pub name: String,
    /// Hosts it answers for: `api.example.test`, `*.example.test` (any name below, at any depth) or
    /// `*` (any host, which is the default). Without port.
    #[serde(default = "any_host")]
    pub hosts: Vec<String>,
    /// Path template: `{name}` is one segment, `{*rest}` at the end the whole tail.
    pub path: String,
    /// Methods it takes. Default: GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Headers that must be there exactly once with exactly this value.
    #[serde(default)]
    pub headers: Named<String>,
    /// Listeners it is served on. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<String>>,
    /// Who may try, in this order: names of issuers, `client_certificate`, and `anonymous` as the
    /// last one. The first that finds its credential decides. Mandatory.
    #[schemars(required)]
    pub authn: Option<Vec<String>>,
    /// Who may: the name of a policy, or `public` for everybody whom `authn` lets through. Mandatory.
    #[schemars(required)]
    pub policy: Option<String>,
    /// How much: names of limits.
    #[serde(default)]
    pub limits: Vec<String>,
    /// What is believed while a feed of revocations is silent.
    #[serde(default)]
    pub revocation: RouteRevocationConfig,
    /// To where: the name of an upstream.
    pub upstream: String,
    /// Bounds on time and size.
    #[serde(default)]
    pub bounds: Bounds,
    /// What it may open instead of answering: `websocket`, `connect`. Default: nothing. A request for a
    /// WebSocket that the route does not open is a request like any other.
    #[serde(default)]
    pub upgrades: Vec<UpgradeName>,
    /// How long what it opens may live; `bounds.head_timeout` still bounds the wait for the opening.
    #[serde(default)]
    pub tunnels: TunnelConfig,
    /// Ambiguous forms of paths that it accepts; all are refused unless named here.
    #[serde(default)]
    pub paths: PathRules,
    /// How its requests are recorded. What happens when there is no room for a record: `block` lets the
    /// request wait (`audit.patience`) and turns it away with 503 then; `spill` turns it away at once, and
    /// needs a ledger, which has room while the disk has; `refuse` does so with any sink; `drop` lets it
    /// pass, and counts the record that is lost. Default: as `audit.when_full`. With
    /// `{ sample: { allow: 1%, deny: 100% }, when_full: … }` a share of the records is kept: of requests
    /// that were allowed, and of those that were refused. What went wrong is always kept, and what is
    /// left out is counted, in the ledger too.
    #[serde(default, skip_serializing_if = "RecordConfig::is_default")]
    pub record: RecordConfig,
    /// Labels that policies see.
    #[serde(default)]
    pub labels: Named<String>,
}

fn any_host() -> Vec<String> {
    vec!["*".to_owned()]
}

/// The blocks of one section: those that compiled, and all that are declared. A reference to a
/// declared block that did not compile is no problem of its own.
#[derive(Debug)]
pub struct Declared<T> {
    /// What compiled.
    pub compiled: Named<T>,
    /// Every name in the file.
    pub names: BTreeSet<String>,
}

impl<T> Default for Declared<T> {
    fn default() -> Self {
        Self {
            compiled: Named::new(),
            names: BTreeSet::new(),
        }
    }
}

/// What routes refer to.
#[derive(Debug)]
pub struct Parts<'p> {
    /// What is said of records.
    pub audit: &'p AuditConfig,
    /// The listeners.
    pub listeners: &'p Declared<Arc<Listener>>,
    /// The issuers.
    pub issuers: &'p Declared<Arc<Issuer>>,
    /// How client certificates become identities.
    pub certificates: &'p Arc<ClientCertificate>,
    /// The policies.
    pub policies: &'p Declared<Arc<Policy>>,
    /// The limits; `None` when they did not compile.
    pub limits: Option<&'p LimitSet>,
    /// The names of all limits in the file.
    pub limit_names: &'p BTreeSet<String>,
    /// The upstreams.
    pub upstreams: &'p Declared<Arc<Upstream>>,
}

impl RouteTable {
    /// Compiles all routes; `places` says where each stands in the document (`routes[3]`), and `previous`
    /// is the table that this one takes the place of.
    pub fn compile(
        routes: &[RouteConfig],
        places: Vec<String>,
        parts: &Parts<'_>,
        previous: Option<&Self>,
        cx: &mut Compile,
    ) -> Self {
        let public = Policy::public();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut entries = Vec::with_capacity(routes.len());
        let mut turn = Turn::begin();
        for (place, route) in places.into_iter().zip(routes) {
            if let Some(first) = names.get(&route.name) {
                let line = cx
                    .locate(first)
                    .map_or_else(String::new, |at| format!(", line {}", at.line));
                cx.at(place.clone(), |cx| {
                    cx.at("name", |cx| {
                        cx.problem_help(
                            format!("another route is called `{}` ({first}{line})", route.name),
                            "records and metrics tell routes apart by name: give each its own",
                        );
                    });
                });
            } else {
                names.insert(route.name.clone(), place.clone());
            }
            let entry = cx.at(place.clone(), |cx| {
                let entry = route.compile(place, parts, &public, cx);
                if entry.is_none() && cx.errors() == 0 {
                    // A part that is not there without anybody saying why: never leave a route out.
                    cx.problem("the route cannot be used");
                }
                entry
            });
            entries.extend(entry);
            turn.pause();
        }
        Self::build(entries, previous, cx)
    }
}

impl RouteConfig {
    /// Compiles one route. Goes through all keys before it gives up.
    fn compile(
        &self,
        place: String,
        parts: &Parts<'_>,
        public: &Arc<Policy>,
        cx: &mut Compile,
    ) -> Option<(Entry, Arc<Route>)> {
        if let Some((message, help)) = name_fault(&self.name) {
            cx.at("name", |cx| cx.problem_help(message, help));
        }
        let hosts = cx.at("hosts", |cx| hosts(&self.hosts, cx));
        if self.path.starts_with(RESERVED) {
            cx.at("path", |cx| {
                cx.problem_help(
                    format!("what begins with {RESERVED} is the gateway's own"),
                    "choose another path: no request would ever come here",
                );
            });
        }
        let template = cx.at("path", |cx| {
            Template::parse(&self.path, self.paths)
                .map_err(|(message, help)| cx.problem_help(message, help))
                .ok()
        });
        let methods = cx.at("methods", |cx| methods(self.methods.as_deref(), cx));
        let headers = cx.at("headers", |cx| headers(&self.headers, cx));
        let listeners = cx.at("listeners", |cx| {
            listeners(self.listeners.as_deref(), parts, cx)
        });
        let authn = authn(self.authn.as_deref(), parts, cx);
        let policy = policy(self.policy.as_deref(), parts, public, cx);
        let name: Arc<str> = self.name.as_str().into();
        let limits = cx.at("limits", |cx| limits(&name, &self.limits, parts, cx));
        let stale = cx.at("revocation", |cx| self.revocation.compile(cx));
        let upstream = cx.at("upstream", |cx| {
            if !parts.upstreams.names.contains(&self.upstream) {
                unknown("upstream", &self.upstream, parts.upstreams.names.iter(), cx);
            }
            parts.upstreams.compiled.get(&self.upstream).cloned()
        });
        cx.at("bounds", |cx| check_bounds(&self.bounds, cx));
        cx.at("record", |cx| self.record.check(parts.audit, cx));
        let upgrades = self.tunnels.compile(&self.upgrades, cx);
        cx.at("upgrades", |cx| {
            let methods = methods.as_deref().unwrap_or_default();
            check_upgrades(&self.upgrades, methods, upstream.as_deref(), cx);
        });
        let labels: Value = object(
            self.labels
                .iter()
                .map(|(name, label)| (Value::from(name.as_str()), Value::from(label.as_str()))),
        );

        let entry = Entry {
            name: Arc::clone(&name),
            template: template?,
            hosts: hosts?,
            conditions: Conditions {
                methods: methods?,
                methods_named: self.methods.is_some(),
                headers: headers?,
                listeners: listeners?,
                connect: upgrades.connect(),
            },
            place,
        };
        let route = Route {
            counts: RouteCounts::new(&cx.metrics, &name),
            name,
            labels,
            paths: self.paths,
            authn: authn?,
            policy: policy?,
            stale: stale?,
            limits: limits?,
            upstream: upstream?,
            bounds: self.bounds.clone(),
            upgrades,
            record: self.record,
        };
        Some((entry, Arc::new(route)))
    }
}

/// What is wrong with the name of a block or route, and how to mend it. Names become labels of
/// metrics and words in records.
pub fn name_fault(name: &str) -> Option<(String, String)> {
    /// Longer names make unreadable records.
    const LONGEST: usize = 64;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.is_empty() && name.len() <= LONGEST && name.bytes().all(legal) {
        return None;
    }
    Some((
        format!("`{}` is not a name", name.escape_default()),
        format!("names are 1 to {LONGEST} letters, digits, `-`, `_` or `.`"),
    ))
}

fn unknown<'k>(kind: &str, name: &str, known: impl Iterator<Item = &'k String>, cx: &mut Compile) {
    let help = known_names(name, known.map(String::as_str));
    cx.problem_help(
        format!("there is no {kind} `{}`", name.escape_default()),
        help,
    );
}

fn hosts(said: &[String], cx: &mut Compile) -> Option<Vec<HostPattern>> {
    if said.is_empty() {
        cx.problem_help(
            "an empty list: the route would take nothing",
            "remove it, or write `[\"*\"]` for any host",
        );
        return None;
    }
    if said.len() > MAX_HOSTS {
        cx.problem_help(
            format!("more than {MAX_HOSTS} hosts"),
            "use `*.example.test`",
        );
        return None;
    }
    let mut patterns = Vec::with_capacity(said.len());
    for (index, text) in said.iter().enumerate() {
        let pattern = cx.at(format!("[{index}]"), |cx| host(text, cx));
        if let Some(pattern) = pattern {
            if patterns.contains(&pattern) {
                cx.at(format!("[{index}]"), |cx| {
                    cx.problem_help(format!("`{text}` is there twice"), "remove one")
                });
            } else {
                patterns.push(pattern);
            }
        }
    }
    (patterns.len() == said.len()).then_some(patterns)
}

fn host(text: &str, cx: &mut Compile) -> Option<HostPattern> {
    if text == "*" {
        return Some(HostPattern::Any);
    }
    let (name, below) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    let address = name.starts_with('[') || name.parse::<std::net::Ipv4Addr>().is_ok();
    match Host::parse(name) {
        Ok(host) if host.port().is_some() => {
            cx.problem_help(
                format!("`{text}` names a port"),
                "routes match the host alone: leave the port out",
            );
            None
        }
        Ok(_) if below && address => {
            cx.problem_help(
                format!("`{text}`: an address has no names below it"),
                "write the address alone",
            );
            None
        }
        Ok(host) if below => Some(HostPattern::Below(format!(".{}", host.name()))),
        Ok(host) => Some(HostPattern::Exact(host.name().to_owned())),
        Err(_) => {
            let help =
                "write a host name (`api.example.test`), `*.example.test`, or `*` for any host";
            cx.problem_help(format!("`{}` is not a host", text.escape_default()), help);
            None
        }
    }
}

fn methods(said: Option<&[String]>, cx: &mut Compile) -> Option<Cow<'static, [Method]>> {
    static USUAL: [Method; 7] = DEFAULT_METHODS;
    let Some(said) = said else {
        return Some(Cow::Borrowed(&USUAL));
    };
    if said.is_empty() {
        cx.problem_help(
            "an empty list: the route would take nothing",
            "remove it for the usual methods, or name some",
        );
        return None;
    }
    let mut methods = Vec::with_capacity(said.len());
    for (index, text) in said.iter().enumerate() {
        cx.at(format!("[{index}]"), |cx| {
            let method = Method::from_bytes(text.as_bytes()).ok();
            let upper = text.to_ascii_uppercase();
            match method {
                Some(Method::CONNECT) => cx.problem_help(
                    "`CONNECT` asks for a tunnel, not for an answer",
                    "remove it; a route that opens tunnels says `upgrades: [connect]`",
                ),
                Some(Method::TRACE) => {
                    cx.problem_help(format!("`{text}` is never let through"), "remove it");
                }
                Some(method) if *text == upper && !methods.contains(&method) => {
                    methods.push(method)
                }
                Some(_) if *text == upper => {
                    cx.problem_help(format!("`{text}` is there twice"), "remove one");
                }
                Some(_) => {
                    cx.problem_help(
                        format!("`{text}` is not a method: case matters"),
                        format!("did you mean `{upper}`?"),
                    );
                }
                None => {
                    cx.problem_help(
                        format!("`{}` is not a method", text.escape_default()),
                        "write it as in `GET`",
                    );
                }
            }
        });
    }
    (methods.len() == said.len()).then_some(Cow::Owned(methods))
}

fn headers(said: &Named<String>, cx: &mut Compile) -> Option<Vec<(HeaderName, HeaderValue)>> {
    if said.len() > MAX_HEADERS {
        cx.problem_help(
            format!("more than {MAX_HEADERS} header conditions"),
            "use fewer",
        );
        return None;
    }
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(said.len());
    for (name, value) in said {
        cx.at(name.clone(), |cx| {
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                cx.key_problem(
                    format!("`{}` is not a header name", name.escape_default()),
                    "write it as in `x-tenant`",
                );
                return;
            };
            // A credential in a route condition would be a secret in the file, compared in a way
            // that leaks it by time.
            if matches!(
                header,
                http::header::AUTHORIZATION | http::header::COOKIE | http::header::HOST
            ) {
                cx.key_problem(
                    format!("`{header}` cannot be a condition"),
                    "use `hosts`, `authn` or a policy",
                );
                return;
            }
            if headers.iter().any(|(known, _)| *known == header) {
                cx.key_problem(
                    format!("`{header}` is there twice"),
                    "names of headers have no case: remove one",
                );
                return;
            }
            match HeaderValue::from_str(value) {
                Ok(value) if !value.is_empty() => headers.push((header, value)),
                _ => cx.problem_help(
                    "the value can match no request",
                    "write printable ASCII text",
                ),
            }
        });
    }
    (headers.len() == said.len()).then_some(headers)
}

fn listeners(
    said: Option<&[String]>,
    parts: &Parts<'_>,
    cx: &mut Compile,
) -> Option<Option<Vec<Arc<str>>>> {
    let Some(said) = said else {
        return Some(None);
    };
    if said.is_empty() {
        cx.problem_help(
            "an empty list: the route would take nothing",
            "remove it for all listeners, or name some",
        );
        return None;
    }
    let mut known = true;
    for (index, name) in said.iter().enumerate() {
        if !parts.listeners.names.contains(name) {
            known = false;
            cx.at(format!("[{index}]"), |cx| {
                unknown("listener", name, parts.listeners.names.iter(), cx)
            });
        }
    }
    known.then(|| Some(said.iter().map(|name| name.as_str().into()).collect()))
}

fn authn(said: Option<&[String]>, parts: &Parts<'_>, cx: &mut Compile) -> Option<Chain> {
    let Some(said) = said else {
        cx.problem_help(
            "the route does not say who may try: `authn` is missing",
            "list issuers or `client_certificate`; a route for everybody says `authn: [anonymous]`",
        );
        return None;
    };
    cx.at("authn", |cx| {
        let mut usable = Vec::with_capacity(said.len());
        for (index, name) in said.iter().enumerate() {
            if METHOD_WORDS.contains(&name.as_str()) || parts.issuers.compiled.contains_key(name) {
                usable.push(name.clone());
            } else if !parts.issuers.names.contains(name) {
                cx.at(format!("[{index}]"), |cx| {
                    let known = parts
                        .issuers
                        .names
                        .iter()
                        .map(String::as_str)
                        .chain(METHOD_WORDS);
                    let help = known_names(name, known);
                    cx.problem_help(
                        format!("there is no issuer or method `{}`", name.escape_default()),
                        help,
                    );
                });
            }
        }
        // What remains is still checked, unless nothing remains.
        if usable.is_empty() && !said.is_empty() {
            return None;
        }
        let chain = Chain::compile(&usable, &parts.issuers.compiled, parts.certificates, cx);
        if usable.len() == said.len() {
            chain
        } else {
            None
        }
    })
}

fn policy(
    said: Option<&str>,
    parts: &Parts<'_>,
    public: &Arc<Policy>,
    cx: &mut Compile,
) -> Option<Arc<Policy>> {
    let Some(said) = said else {
        cx.problem_help(
            "the route does not say who may: `policy` is missing",
            "name a policy; a route that is open to everybody it authenticates says `policy: public`",
        );
        return None;
    };
    if said == PUBLIC {
        return Some(Arc::clone(public));
    }
    cx.at("policy", |cx| {
        if !parts.policies.names.contains(said) {
            let known = parts
                .policies
                .names
                .iter()
                .map(String::as_str)
                .chain([PUBLIC]);
            let help = known_names(said, known);
            cx.problem_help(
                format!("there is no policy `{}`", said.escape_default()),
                help,
            );
        }
        parts.policies.compiled.get(said).cloned()
    })
}

fn limits(
    route: &Arc<str>,
    said: &[String],
    parts: &Parts<'_>,
    cx: &mut Compile,
) -> Option<Limits> {
    let mut known = true;
    for (index, name) in said.iter().enumerate() {
        cx.at(format!("[{index}]"), |cx| {
            if !parts.limit_names.contains(name) {
                known = false;
                unknown("limit", name, parts.limit_names.iter(), cx);
            } else if said.iter().take(index).any(|earlier| earlier == name) {
                known = false;
                cx.problem_help(
                    format!("`{name}` is there twice"),
                    "it would count every request twice: remove one",
                );
            }
        });
    }
    if !known {
        return None;
    }
    Limits::compile(route, said, parts.limits?, cx)
}

/// What is opened has to fit the rest of the route.
fn check_upgrades(
    upgrades: &[UpgradeName],
    methods: &[Method],
    upstream: Option<&Upstream>,
    cx: &mut Compile,
) {
    for (index, name) in upgrades.iter().enumerate() {
        cx.at(format!("[{index}]"), |cx| match name {
            UpgradeName::WebSocket if !methods.contains(&Method::GET) => cx.problem_help(
                "a WebSocket is opened by GET, which the route does not take",
                "add GET to `methods`, or remove this",
            ),
            UpgradeName::Connect if upstream.is_some_and(Upstream::is_http2) => cx.problem_help(
                "the bytes of a tunnel go to an endpoint as they are, and its upstream speaks HTTP/2",
                "name an upstream with `protocol: http1`: nothing is spoken to it but the client's bytes",
            ),
            UpgradeName::WebSocket | UpgradeName::Connect => {}
        });
    }
}

fn check_bounds(bounds: &Bounds, cx: &mut Compile) {
    let zero = Span::seconds(0);
    for (key, span) in [
        ("head_timeout", bounds.head_timeout),
        ("idle_timeout", bounds.idle_timeout),
        ("total_timeout", bounds.total_timeout),
    ] {
        if span == zero {
            cx.at(key, |cx| {
                cx.problem_help(
                    "no request would be in time",
                    "every wait has a bound: write one such as `30s`",
                )
            });
        }
    }
    if bounds.head_timeout > bounds.total_timeout {
        cx.at("total_timeout", |cx| {
            let message = format!(
                "the whole exchange ({}) is shorter than the wait for its head ({})",
                bounds.total_timeout, bounds.head_timeout
            );
            cx.problem_help(message, "raise `total_timeout` or lower `head_timeout`");
        });
    }
}
