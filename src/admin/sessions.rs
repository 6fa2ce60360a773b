//! Sessions of the page.
//!
//! A browser gives the token once and gets a session in two halves: a cookie that scripts cannot read,
//! and a key that only pages of this very origin can read, which they send in a header. Cookies are
//! shared between all ports of a host, and what else listens on this machine may see them: with the
//! cookie alone nobody gets in, and a page elsewhere cannot send the header. A session reads; whatever
//! changes something still wants the token itself.
//!
//! Sessions are bounded in number and life, and end with the token that they were opened with.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use http::header::{COOKIE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::pages::{self, answer, problem};
use super::{AdminState, INTENT, Page, read};
use crate::schema::Secret;

/// Open sessions; the one that was used longest ago ends when a further one begins.
const MAX_SESSIONS: usize = 32;

/// How long a session lasts, used or not.
const LIFE: Duration = Duration::from_secs(12 * 60 * 60);

/// How long it lasts without being used. A page that is looked at uses it every few seconds.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// Wrong tokens that are answered at once; each gets back to that number after `PAUSE`.
const FREE_GUESSES: u32 = 10;

/// How long the answer to a further wrong token takes.
const PAUSE: Duration = Duration::from_secs(1);

/// Wrong tokens that wait for their answer at one time. While so many do, no token is looked at.
const MAX_WAITING: usize = 8;

/// Bytes of entropy in each half of a session.
const HALF: usize = 32;

/// The half of a session that pages send.
const KEY: HeaderName = HeaderName::from_static("x-portcullis-session");

/// What the page asks and sends to begin and end a session.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
}

/// The sessions of one listener, and how often somebody guessed.
#[derive(Debug)]
pub(super) struct Sessions {
    open: Mutex<Vec<Session>>,
    guesses: Mutex<Guesses>,
    waiting: Semaphore,
}

#[derive(Debug)]
struct Session {
    /// Digests: what is in memory opens nothing.
    cookie: Digest,
    key: Digest,
    /// Of the token that it was opened with.
    token: Digest,
    began: Instant,
    used: Instant,
}

type Digest = [u8; 32];

#[derive(Debug)]
struct Guesses {
    left: u32,
    since: Instant,
}

/// Why a token was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// It is another.
    Wrong,
    /// Too many are being guessed to look at it.
    TooMany,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            guesses: Mutex::new(Guesses {
                left: FREE_GUESSES,
                since: Instant::now(),
            }),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }
}

impl Sessions {
    /// Compares a token with the one that is wanted. Guessing gets slow, for everybody together: a
    /// right token is kept waiting by nobody, unless very many wrong ones are under way.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(super) async fn try_token(&self, wanted: &Secret, given: &[u8]) -> Result<(), NotTaken> {
        if self.waiting.available_permits() == 0 {
            return Err(NotTaken::TooMany);
        }
        if bool::from(wanted.expose().ct_eq(given)) {
            return Ok(());
        }
        if !self.guess(Instant::now()) {
            let _place = self.waiting.try_acquire().map_err(|_| NotTaken::TooMany)?;
            tokio::time::sleep(PAUSE).await;
        }
        Err(NotTaken::Wrong)
    }

    /// Whether a wrong guess is free.
    fn guess(&self, now: Instant) -> bool {
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(guesses.since);
        let back = u32::try_from(passed.as_secs() / PAUSE.as_secs()).unwrap_or(u32::MAX);
        if back > 0 {
            guesses.left = guesses.left.saturating_add(back).min(FREE_GUESSES);
            guesses.since = now;
        }
        let free = guesses.left > 0;
        guesses.left = guesses.left.saturating_sub(1);
        free
    }

    /// Opens a session: the two halves.
    fn begin(&self, token: &Secret, now: Instant) -> (String, String) {
        let (cookie, key) = (random(), random());
        let mut open = self.lock();
        open.retain(|session| session.lasts(now));
        if open.len() >= MAX_SESSIONS {
            let longest = open.iter().enumerate().min_by_key(|(_, one)| one.used);
            if let Some((index, _)) = longest {
                open.swap_remove(index);
            }
        }
        open.push(Session {
            cookie: of(cookie.as_bytes()),
            key: of(key.as_bytes()),
            token: of(token.expose()),
            began: now,
            used: now,
        });
        (cookie, key)
    }

    /// For how long more a session lasts, if it is one: cookies have a name by port, since a browser
    /// sends those of all ports.
    fn stands(&self, halves: &Halves<'_>, token: &Secret, now: Instant) -> Option<Duration> {
        let (cookies, key, token) = (&halves.cookies, of(halves.key), of(token.expose()));
        let mut open = self.lock();
        open.retain(|session| session.lasts(now));
        let session = open.iter_mut().find(|session| {
            bool::from(session.key.ct_eq(&key) & session.token.ct_eq(&token))
                && cookies
                    .iter()
                    .any(|cookie| bool::from(session.cookie.ct_eq(&of(cookie.as_bytes()))))
        })?;
        session.used = now;
        Some((session.began + LIFE).saturating_duration_since(now))
    }

    fn end(&self, halves: &Halves<'_>) {
        let key = of(halves.key);
        self.lock()
            .retain(|session| !bool::from(session.key.ct_eq(&key)));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn lasts(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < LIFE
            && now.saturating_duration_since(self.used) < IDLE
    }
}

/// What a request brings of a session.
struct Halves<'h> {
    cookies: Vec<&'h str>,
    key: &'h [u8],
}

impl<'h> Halves<'h> {
    fn of(headers: &'h HeaderMap) -> Option<Self> {
        let mut keys = headers.get_all(KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return None;
        };
        let name = cookie_name(headers);
        let cookies: Vec<&str> = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(known, _)| *known == name)
            .map(|(_, value)| value)
            .take(4)
            .collect();
        (!cookies.is_empty()).then_some(Self {
            cookies,
            key: key.as_bytes(),
        })
    }
}

/// The cookie's name, by the port that the browser asks: two gateways behind one name keep theirs apart.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(http::header::HOST);
    let host = host.and_then(|value| value.to_str().ok());
    let port = host
        .and_then(|host| host.rsplit_once(':'))
        .map(|(_, port)| port)
        .filter(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    format!("portcullis-admin-{}", port.unwrap_or("80"))
}

fn of(bytes: &[u8]) -> Digest {
    let mut whole = Digest::default();
    let digest = digest(&SHA256, bytes);
    for (to, from) in whole.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    whole
}

fn random() -> String {
    let bytes: [u8; HALF] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the page at `path` is one of these.
pub(super) fn is_here(path: &str) -> bool {
    matches!(path, "/session" | "/login" | "/logout")
}

/// For how long more the request's session lasts, if it has one.
pub(super) fn open(state: &AdminState, headers: &HeaderMap) -> Option<Duration> {
    let access = state.access.load();
    let token = access.token.as_ref()?;
    let halves = Halves::of(headers)?;
    state.sessions.stands(&halves, token, Instant::now())
}

/// The page at `path`, which [`is_here`].
pub(super) async fn find<B>(state: &AdminState, head: &http::request::Parts, body: B) -> Page
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let intent = head.headers.contains_key(INTENT);
    match (head.uri.path(), &head.method) {
        ("/session", &Method::GET | &Method::HEAD) => shown(state, &head.headers),
        ("/login" | "/logout", &Method::POST) if !intent => pages::unmeant(),
        ("/login", &Method::POST) => match read(body).await {
            Ok(body) => login(state, &head.headers, &body).await,
            Err(page) => page,
        },
        ("/logout", &Method::POST) => logout(state, &head.headers),
        _ => pages::wrong_method(),
    }
}

/// Whether somebody is logged in, and whether anybody can be. Tells nothing else.
fn shown(state: &AdminState, headers: &HeaderMap) -> Page {
    let possible = state.access.load().token.is_some();
    let left = open(state, headers);
    let document = json!({
        "login": possible,
        "open": left.is_some(),
        "ends_in_seconds": left.map(|left| left.as_secs()),
        "why_not": (!possible).then_some(pages::UNCONFIGURED),
    });
    answer(StatusCode::OK, &document)
}

async fn login(state: &AdminState, headers: &HeaderMap, body: &[u8]) -> Page {
    let access = state.access.load_full();
    let Some(token) = &access.token else {
        return pages::unconfigured();
    };
    // What cannot be read is not repeated: it may be a token.
    let Ok(Login { token: given }) = serde_json::from_slice(body) else {
        return problem(StatusCode::BAD_REQUEST, "send JSON like {\"token\": \"…\"}");
    };
    if let Err(why) = state.sessions.try_token(token, given.as_bytes()).await {
        if why == NotTaken::Wrong {
            tracing::warn!("somebody gave a wrong token to the admin page");
        }
        return why.into();
    }
    let (cookie, key) = state.sessions.begin(token, Instant::now());
    tracing::info!("a session of the admin page begins");
    let name = cookie_name(headers);
    let cookie = format!(
        "{name}={cookie}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict",
        LIFE.as_secs()
    );
    let document = json!({ "key": key, "ends_in_seconds": LIFE.as_secs() });
    Page {
        cookie: HeaderValue::try_from(cookie).ok(),
        ..answer(StatusCode::OK, &document)
    }
}

fn logout(state: &AdminState, headers: &HeaderMap) -> Page {
    if let Some(halves) = Halves::of(headers) {
        state.sessions.end(&halves);
        tracing::info!("a session of the admin page ends");
    }
    let name = cookie_name(headers);
    let cookie = format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    Page {
        cookie: HeaderValue::try_from(cookie).ok(),
        ..answer(StatusCode::OK, &json!({ "open": false }))
    }
}

impl From<NotTaken> for Page {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Wrong => problem(StatusCode::UNAUTHORIZED, "the token is wrong"),
            NotTaken::TooMany => problem(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong tokens are being sent: try again in a second",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halves<'h>(cookie: &'h str, key: &'h str) -> Halves<'h> {
        Halves {
            cookies: vec![cookie],
            key: key.as_bytes(),
        }
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[test]
    fn a_session_takes_both_halves_and_the_token_that_it_was_opened_with() {
        let sessions = Sessions::default();
        let (token, now) = (secret("first"), Instant::now());
        let (cookie, key) = sessions.begin(&token, now);
        let (other_cookie, other_key) = sessions.begin(&token, now);
        let stands = |cookie: &str, key: &str, token: &Secret| {
            sessions.stands(&halves(cookie, key), token, now).is_some()
        };
        assert!(stands(&cookie, &key, &token));
        assert!(!stands(&cookie, &other_key, &token), "of two sessions");
        assert!(!stands(&other_cookie, &key, &token), "of two sessions");
        assert!(!stands("", &key, &token) && !stands(&cookie, "", &token));
        assert!(!stands(&cookie, &key, &secret("second")), "changed token");
        sessions.end(&halves(&cookie, &key));
        assert!(!stands(&cookie, &key, &token));
        assert!(stands(&other_cookie, &other_key, &token));
    }

    #[test]
    fn a_session_ends_unused_or_after_its_life_and_there_are_only_so_many() {
        let sessions = Sessions::default();
        let (token, now) = (secret("token"), Instant::now());
        let (cookie, key) = sessions.begin(&token, now);
        let stands = |at: Duration| sessions.stands(&halves(&cookie, &key), &token, now + at);
        let mut at = Duration::ZERO;
        while at + IDLE / 2 < LIFE {
            assert!(stands(at).is_some(), "{at:?}");
            at += IDLE / 2;
        }
        assert!(stands(LIFE).is_none());
        let (cookie, key) = sessions.begin(&token, now);
        let idle = sessions.stands(&halves(&cookie, &key), &token, now + IDLE);
        assert!(idle.is_none());

        let first = sessions.begin(&token, now);
        for nth in 1..=MAX_SESSIONS {
            let second = Duration::from_secs(u64::try_from(nth).unwrap());
            sessions.begin(&token, now + second);
        }
        assert_eq!(sessions.lock().len(), MAX_SESSIONS);
        let gone = sessions.stands(&halves(&first.0, &first.1), &token, now);
        assert!(gone.is_none());
    }

    #[tokio::test]
    async fn guessing_gets_slow_and_then_no_token_is_looked_at() {
        let sessions = std::sync::Arc::new(Sessions::default());
        let token = secret("right");
        let begun = tokio::time::Instant::now();
        for _ in 0..FREE_GUESSES {
            let wrong = sessions.try_token(&token, b"wrong").await;
            assert_eq!(wrong, Err(NotTaken::Wrong));
        }
        let mut guessing = tokio::task::JoinSet::new();
        // One may be free again meanwhile, on a machine that has much to do.
        while sessions.waiting.available_permits() > 0 {
            let (sessions, token) = (std::sync::Arc::clone(&sessions), token.clone());
            guessing.spawn(async move { sessions.try_token(&token, b"wrong").await });
            tokio::task::yield_now().await;
        }
        for given in ["right", "wrong"] {
            let answer = sessions.try_token(&token, given.as_bytes()).await;
            assert_eq!(answer, Err(NotTaken::TooMany), "{given}");
        }
        while let Some(guessed) = guessing.join_next().await {
            assert_eq!(guessed.unwrap(), Err(NotTaken::Wrong));
        }
        assert!(begun.elapsed() >= PAUSE);
        assert_eq!(sessions.try_token(&token, b"right").await, Ok(()));
    }

    #[test]
    fn cookies_of_other_ports_are_not_taken_for_ours() {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::HOST, HeaderValue::from_static("[::1]:9901"));
        headers.insert(KEY, HeaderValue::from_static("k"));
        assert!(Halves::of(&headers).is_none());
        headers.insert(
            COOKIE,
            HeaderValue::from_static("a=b; portcullis-admin-9902=x; portcullis-admin-9901=y"),
        );
        assert_eq!(Halves::of(&headers).unwrap().cookies, ["y"]);
        headers.append(KEY, HeaderValue::from_static("k2"));
        assert!(Halves::of(&headers).is_none(), "two keys");
    }
}
