//! The admin listener: live, ready, metrics, configuration, reload, and a page for people. Never
//! reachable from a data port.
//!
//! It speaks plain HTTP/1.1 on its own socket, on the control thread, one request per connection,
//! with bounds on connections, time and size.
//!
//! Whoever asks has a credential of its own, the admin token. Without it there is what says nothing of
//! requests and callers and changes nothing: `/live`, `/ready`, `/metrics`, an index and an empty page.
//! Where no token is configured, there is no more than that for anybody: being on the same machine is
//! no credential.
//!
//! Browsers are kept out besides: the `Host` must be an address or a name from the configuration (DNS
//! rebinding), and no request of another origin is answered. The one page that may read is our own
//! (`page`): for the token it gets a session (`sessions`), which reads and changes nothing.

mod candidates;
mod client;
mod decisions;
mod keys;
mod order;
mod overview;
mod page;
mod pages;
mod revocations;
mod sessions;
mod survey;
mod traces;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, HeaderName, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

pub use client::{AskError, ask};
pub use order::{Done, Order};
pub use survey::{WorkerView, Workers};

use self::sessions::Sessions;
use crate::request::Host;
use crate::schema::{Compile, Problem, Secret, SecretRef};
use crate::snapshot::Live;

/// Connections that are served at one time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 32;

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one connection may take, a reload included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest head of a request.
const MAX_HEAD: usize = 16 * 1024;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// How long to wait after the system refused to accept a connection (file descriptors ran out).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The largest body of a request.
const MAX_BODY: usize = 64 * 1024;

/// How long it may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often that is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The shortest token that can stand against guessing.
const SHORTEST_TOKEN: usize = 16;

/// Keeps what is answered out of pages of other origins.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// From where a browser says that a request comes, and what for.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// What a request that begins or ends a session carries. A page of another origin cannot send it
/// without a preflight, which is never answered with consent.
const INTENT: HeaderName = HeaderName::from_static("x-portcullis-admin");

/// The `admin` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// `address:port` of the admin listener, without TLS. Default: no admin listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Lets the address be other than this machine's own. Needs a `token`.
    pub allow_remote: bool,
    /// A secret of 16 bytes or more that everything but `/live`, `/ready` and `/metrics` requires as
    /// `Authorization: Bearer …`. The page at `/` asks for it and opens a session, which reads only.
    /// Default: none, and the listener serves nothing but those three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// Names under which the listener may be asked, beside `localhost` and addresses.
    pub hosts: Vec<String>,
}

/// The compiled section.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where to listen; `None` for nowhere.
    pub address: Option<SocketAddr>,
    /// What protected pages require; without it they are served to nobody.
    pub token: Option<Secret>,
    /// Names under which it may be asked, in lower case.
    pub hosts: Vec<String>,
}

impl AdminConfig {
    /// Compiles the section.
    pub fn compile(self, cx: &mut Compile) -> Option<Admin> {
        let before = cx.errors();
        let remote = self
            .address
            .is_some_and(|address| !address.ip().to_canonical().is_loopback());
        if remote && !self.allow_remote {
            cx.at("address", |cx| {
                cx.problem_help(
                    "this address can be reached from other machines",
                    "write 127.0.0.1 or [::1], or set `allow_remote: true` and a `token`",
                );
            });
        }
        if remote && self.token.is_none() {
            cx.problem_help(
                "an admin listener that other machines can reach needs a token",
                "set `token: env:NAME` or `token: file:PATH`",
            );
        } else if self.address.is_some() && self.token.is_none() {
            cx.warning(
                "the admin listener has no token: it serves /live, /ready and /metrics, and nothing \
                 else, neither decisions nor reloads nor revocations",
                "set `token: file:PATH` or `token: env:NAME`, with a secret as `openssl rand -hex 32` \
                 makes it",
            );
        }
        let token = self.token.as_ref().and_then(|reference| {
            cx.at("token", |cx| {
                let token = cx.secret(reference)?;
                if token.expose().len() < SHORTEST_TOKEN {
                    cx.problem_help(
                        format!("the token is shorter than {SHORTEST_TOKEN} bytes"),
                        "make one with `openssl rand -hex 32`",
                    );
                    return None;
                }
                Some(token)
            })
        });
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for (index, host) in self.hosts.iter().enumerate() {
            match Host::parse(host) {
                Ok(host) if host.port().is_none() => hosts.push(host.name().to_owned()),
                Ok(_) | Err(_) => cx.at(format!("hosts[{index}]"), |cx| {
                    cx.problem_help("this is no host name", "write the name without a port");
                }),
            }
        }
        (cx.errors() == before).then_some(Admin {
            address: self.address,
            token,
            hosts,
        })
    }
}

/// What a reload promises: the revision in force, or every problem that kept it from being so.
pub type Reloaded = Pin<Box<dyn Future<Output = Result<String, Vec<Problem>>> + Send>>;

/// Runs a reload.
pub type Reload = Arc<dyn Fn() -> Reloaded + Send + Sync>;

/// What the admin pages show and do.
pub struct AdminState {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// Runs a reload.
    pub reload: Reload,
    /// Set when the gateway leaves: it is not ready any more.
    pub draining: Arc<AtomicBool>,
    /// Who may ask; a reload replaces it, so that a leaked token can be taken back.
    pub access: Arc<ArcSwap<Admin>>,
    /// When the process began to serve.
    pub started: Instant,
    reloading: Mutex<()>,
    workers: Workers,
    sessions: Sessions,
    /// Who may wait for decisions at one time.
    waiting: Semaphore,
    /// Who may have a decision explained at one time.
    explaining: Arc<Semaphore>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl AdminState {
    /// The state of an admin listener that begins now.
    pub fn new(
        live: Arc<Live>,
        reload: Reload,
        draining: Arc<AtomicBool>,
        access: Arc<ArcSwap<Admin>>,
        workers: Workers,
    ) -> Self {
        Self {
            live,
            reload,
            draining,
            access,
            started: Instant::now(),
            reloading: Mutex::new(()),
            workers,
            sessions: Sessions::default(),
            waiting: Semaphore::new(decisions::MAX_WAITING),
            explaining: Arc::new(Semaphore::new(decisions::MAX_EXPLAINING)),
        }
    }
}

/// Serves the admin pages until the future is dropped.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut complained: Option<Instant> = None;
    loop {
        // Never closed, so there is always a permit in the end.
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    let _ = timeout(CONNECTION_TIMEOUT, connection(stream, state)).await;
                    drop(seat);
                });
            }
            Err(error) => {
                if complained.is_none_or(|before| before.elapsed() >= COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "the admin listener cannot accept");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<AdminState>) {
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection broke off");
    }
}

/// A page: status, content type, text.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    status: StatusCode,
    content_type: &'static str,
    text: String,
    /// What a browser keeps.
    cookie: Option<HeaderValue>,
}

async fn answer<B>(state: &AdminState, request: Request<B>) -> Response<Full<Bytes>>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // A body is read only where one is taken, from whoever may send one; otherwise the connection
    // ends with the answer.
    let (head, body) = request.into_parts();
    let mut page = match check(state, &head).await {
        Err(page) => page,
        Ok(access) => page(state, &head, access, body).await,
    };
    let policy = if page.content_type == page::HTML {
        page::POLICY
    } else {
        "default-src 'none'; frame-ancestors 'none'"
    };
    let cookie = page.cookie.take();
    let mut text = Bytes::from(page.text);
    if head.method == Method::HEAD {
        text.clear();
    }
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    for (name, value) in [
        (http::header::CONTENT_TYPE, page.content_type),
        (CACHE_CONTROL, "no-store"),
        (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (http::header::CONTENT_SECURITY_POLICY, policy),
        (http::header::REFERRER_POLICY, "no-referrer"),
        // No page of another origin takes this for a picture or a script.
        (RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(cookie) = cookie {
        headers.insert(http::header::SET_COOKIE, cookie);
    }
    if page.status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if page.status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"portcullis-admin\"");
        headers.insert(http::header::WWW_AUTHENTICATE, challenge);
    }
    response
}

async fn page<B>(state: &AdminState, head: &http::request::Parts, access: Access, body: B) -> Page
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = head.uri.path();
    if sessions::is_here(path) {
        return sessions::find(state, head, body).await;
    }
    if let Some(page) = page::find(&head.method, path, &head.headers) {
        return page;
    }
    // Asked once, before any page is looked for: none can forget to.
    if !pages::is_open(path) {
        match access {
            Access::Granted => {}
            Access::Refused => return pages::untrusted(),
            Access::Unconfigured => return pages::unconfigured(),
        }
    }
    if candidates::is_here(path) {
        return candidates::find(state, &head.method, path).await;
    }
    if decisions::is_here(path) {
        return decisions::find(state, &head.method, &head.uri).await;
    }
    let (revocations, keys) = (revocations::is_here(path), keys::is_here(path));
    let traces = traces::is_here(path);
    if !revocations && !keys && !traces {
        return pages::find(state, &head.method, &head.uri).await;
    }
    let body = if matches!(head.method, Method::POST | Method::DELETE) {
        match read(body).await {
            Ok(body) => body,
            Err(page) => return page,
        }
    } else {
        Bytes::new()
    };
    if traces {
        traces::find(state, &head.method, &head.uri, &body).await
    } else if keys {
        keys::find(state, &head.method, path, &body).await
    } else {
        revocations::find(state, &head.method, &head.uri, &body).await
    }
}

/// The body of a request, within its bounds.
async fn read<B>(body: B) -> Result<Bytes, Page>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(pages::problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is longer than 64 KiB, or broke off",
        )),
        Err(_) => Err(pages::problem(
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long",
        )),
    }
}

/// Whether a request may see and do what is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// It has shown the token; or a session, and it reads.
    Granted,
    /// It has shown neither.
    Refused,
    /// There is no token that anybody could show.
    Unconfigured,
}

async fn check(state: &AdminState, head: &http::request::Parts) -> Result<Access, Page> {
    let headers = &head.headers;
    if !host_is_ours(state, headers) {
        return Err(pages::problem(
            StatusCode::MISDIRECTED_REQUEST,
            "the admin listener is not served under this host",
        ));
    }
    if is_foreign(head) {
        return Err(pages::problem(
            StatusCode::FORBIDDEN,
            "the admin listener does not serve pages of other origins",
        ));
    }
    let presented = presented_token(headers);
    // Not held while a guess waits for its answer: a reload may replace it.
    let access = state.access.load_full();
    let reading = matches!(head.method, Method::GET | Method::HEAD);
    match (&access.token, presented) {
        (None, _) => Ok(Access::Unconfigured),
        // A session reads. What changes something wants the token itself.
        (Some(_), None) if reading && sessions::open(state, headers).is_some() => {
            Ok(Access::Granted)
        }
        (Some(_), None) => Ok(Access::Refused),
        (Some(token), Some(presented)) => {
            state.sessions.try_token(token, presented).await?;
            Ok(Access::Granted)
        }
    }
}

/// Whether a page of another origin sent it. Our own page reads, which browsers do without an
/// `Origin`, and begins and ends its session, which they do with ours. What says where it comes from
/// (`Sec-Fetch-Site`) must say: from here, or from nobody; but the page itself may be linked to, for it
/// holds nothing.
fn is_foreign(head: &http::request::Parts) -> bool {
    let headers = &head.headers;
    let path = head.uri.path();
    let posts = head.method == Method::POST && matches!(path, "/login" | "/logout");
    if headers.contains_key(ORIGIN) && !(posts && origin_is_ours(headers)) {
        return true;
    }
    let linked = head.method == Method::GET
        && path == "/"
        && headers
            .get(FETCH_MODE)
            .is_some_and(|mode| mode == "navigate");
    let known = |site: &HeaderValue| site == "same-origin" || site == "none";
    !linked && !headers.get_all(FETCH_SITE).iter().all(known)
}

/// Whether it names the very host and port that are asked, which [`host_is_ours`] has seen.
fn origin_is_ours(headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else {
        return false;
    };
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    let rest = [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| origin.as_bytes().strip_prefix(*scheme));
    rest.is_some() && rest == host
}

fn presented_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values
        .next()
        .filter(|_| values.next().is_none())?
        .as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// A page that rebinds its own name to our address still sends its own name.
fn host_is_ours(state: &AdminState, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let Some(host) = value.to_str().ok().and_then(|text| Host::parse(text).ok()) else {
        return false;
    };
    let name = host.name().trim_matches(['[', ']']);
    name == "localhost"
        || name.parse::<IpAddr>().is_ok()
        || state.access.load().hosts.iter().any(|known| known == name)
}

#[cfg(test)]
mod tests;
