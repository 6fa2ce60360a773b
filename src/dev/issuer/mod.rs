//! The development issuer: discovery, a key set, access tokens for a few people and services, and
//! key rotation on demand.
//!
//! It answers on loopback alone, and its secrets are printed in this file: it proves nothing to
//! anybody outside of this machine and is no identity provider.

pub mod keys;
mod people;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use self::keys::{Algorithm, KeyFault, KeySet};
use self::people::Subject;
pub use self::people::{AUDIENCE, CLIENT_ID, CLIENT_SECRET};
use super::form::Form;
use super::service::{Answer, Service, json as answer, names_loopback, read_body};
use crate::clock;

/// Largest token request, in bytes.
const MAX_FORM: usize = 16 * 1024;
/// Life of a token when nothing else is asked for, in seconds.
const DEFAULT_LIFE: i64 = 3_600;
/// Longest life, and longest time since the end of an expired token, in seconds.
const MAX_LIFE: i64 = 86_400;
/// How long an expired token was good for, in seconds.
const EXPIRED_LIFE: i64 = 300;

/// A running development issuer.
#[derive(Debug)]
pub struct Issuer {
    /// Its `iss`: `http://127.0.0.1:9400`.
    pub url: String,
    _service: Service,
}

struct State {
    url: String,
    ring: Mutex<Ring>,
}

/// The keys that sign, and the ones before them for as long as their tokens may be about.
struct Ring {
    current: Arc<KeySet>,
    previous: Option<Arc<KeySet>>,
}

impl Issuer {
    /// Starts the issuer on a bound loopback socket.
    ///
    /// # Errors
    /// When keys cannot be made or the thread cannot be started.
    pub(super) fn start(listener: TcpListener) -> io::Result<Self> {
        let url = format!("http://{}", listener.local_addr()?);
        let current = KeySet::generate(1).map_err(io::Error::other)?;
        let state = Arc::new(State {
            url: url.clone(),
            ring: Mutex::new(Ring {
                current: Arc::new(current),
                previous: None,
            }),
        });
        let service = Service::start("dev-issuer", listener, move |request| {
            handle(Arc::clone(&state), request)
        })?;
        Ok(Self {
            url,
            _service: service,
        })
    }
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> Answer {
    if !names_loopback(&request) {
        return fault(
            StatusCode::MISDIRECTED_REQUEST,
            "invalid_request",
            "the issuer is asked by its loopback address only",
        );
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/.well-known/openid-configuration") => state.discovery(),
        (&Method::GET, "/jwks") => state.jwks(),
        (&Method::POST, "/token") => state.token(request).await,
        (&Method::POST, "/rotate") => state.rotate(&request).await,
        (_, "/.well-known/openid-configuration" | "/jwks" | "/token" | "/rotate") => fault(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request",
            "GET for discovery and keys, POST for tokens and rotation",
        ),
        _ => fault(StatusCode::NOT_FOUND, "not_found", "no such page"),
    }
}

impl State {
    fn discovery(&self) -> Answer {
        let url = &self.url;
        let algorithms = Algorithm::ALL.map(Algorithm::name);
        cached(answer(
            StatusCode::OK,
            &json!({
                "issuer": url,
                "jwks_uri": format!("{url}/jwks"),
                "token_endpoint": format!("{url}/token"),
                "grant_types_supported": ["client_credentials"],
                "response_types_supported": ["token"],
                "subject_types_supported": ["public"],
                "token_endpoint_auth_methods_supported":
                    ["client_secret_basic", "client_secret_post"],
                "id_token_signing_alg_values_supported": algorithms,
            }),
        ))
    }

    fn jwks(&self) -> Answer {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<&Value> = ring
            .current
            .jwks()
            .chain(ring.previous.iter().flat_map(|keys| keys.jwks()))
            .collect();
        cached(answer(StatusCode::OK, &json!({ "keys": keys })))
    }

    /// RFC 6749 section 4.4, with parameters beside it that only a development issuer has.
    async fn token(&self, request: Request<Incoming>) -> Answer {
        let basic = basic_credentials(request.headers());
        let Some(form) = read_body(request.into_body(), MAX_FORM)
            .await
            .and_then(|body| Form::parse(&body))
        else {
            return invalid("the body is not a form");
        };
        let (id, secret) = match basic {
            Some((id, secret)) => (id, secret),
            None => (
                form.get("client_id").unwrap_or_default().to_owned(),
                form.get("client_secret").unwrap_or_default().to_owned(),
            ),
        };
        let Some(client) = people::client(&id, &secret) else {
            return fault(
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "unknown client, or a wrong secret",
            );
        };
        if form.get("grant_type") != Some("client_credentials") {
            return fault(
                StatusCode::BAD_REQUEST,
                "unsupported_grant_type",
                "only client_credentials",
            );
        }
        let subject = match form.get("user") {
            None => client,
            Some(name) => match people::user(name) {
                Some(user) if client.may_name_users => user,
                Some(_) => return invalid("this client gets tokens for itself only"),
                None => return invalid("unknown user: alice, bob and carol are here"),
            },
        };
        match Wanted::read(&form, subject) {
            Ok(wanted) => self.mint(&id, subject, &wanted),
            Err(problem) => invalid(&problem),
        }
    }

    fn mint(&self, client: &str, subject: &Subject, wanted: &Wanted) -> Answer {
        let claims = wanted.claims(&self.url, client, subject, clock::now());
        let keys = {
            let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&ring.current)
        };
        match keys.access_token(wanted.algorithm, &claims) {
            Ok(token) => no_store(answer(
                StatusCode::OK,
                &json!({
                    "access_token": token,
                    "token_type": "Bearer",
                    "expires_in": wanted.life,
                    "scope": wanted.scope,
                }),
            )),
            Err(KeyFault) => fault(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                "signing failed",
            ),
        }
    }

    /// Signs with new keys from now on. The old ones stay published until the next rotation, or go
    /// at once with `?drop=1`.
    async fn rotate(&self, request: &Request<Incoming>) -> Answer {
        let drop = request.uri().query() == Some("drop=1");
        let generation = {
            let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.current.generation() + 1
        };
        // An RSA key takes long enough to be noticed by others who wait for an answer.
        let made = tokio::task::spawn_blocking(move || KeySet::generate(generation)).await;
        let Ok(Ok(made)) = made else {
            return fault(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                "no new keys",
            );
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut ring.current, Arc::new(made));
        ring.previous = (!drop).then_some(old);
        answer(
            StatusCode::OK,
            &json!({ "generation": generation, "previous_keys_published": !drop }),
        )
    }
}

/// What a token request asks for.
#[derive(Debug)]
struct Wanted {
    algorithm: Algorithm,
    audience: String,
    scope: String,
    life: i64,
    acr: Option<String>,
}

impl Wanted {
    fn read(form: &Form, subject: &Subject) -> Result<Self, String> {
        let algorithm = match form.get("alg") {
            None => Algorithm::default(),
            Some(name) => name.parse()?,
        };
        let life = match form.get("expires_in") {
            None => DEFAULT_LIFE,
            Some(text) => text
                .parse()
                .ok()
                .filter(|life| (-MAX_LIFE..=MAX_LIFE).contains(life))
                .ok_or("expires_in is a number of seconds, at most a day, or less than zero")?,
        };
        // RFC 8707 calls it `resource`; several providers call it `audience`.
        let audience = form.get("audience").or_else(|| form.get("resource"));
        let scope = match form.get("scope") {
            None => subject.scopes.to_owned(),
            Some(asked) => {
                let granted = |scope: &&str| subject.scopes.split(' ').any(|own| own == *scope);
                let scopes: Vec<&str> = asked.split_ascii_whitespace().filter(granted).collect();
                scopes.join(" ")
            }
        };
        Ok(Self {
            algorithm,
            audience: audience.unwrap_or(AUDIENCE).to_owned(),
            scope,
            life,
            acr: form.get("acr").map(str::to_owned),
        })
    }

    /// The claims of RFC 9068 section 2.2, and those of the example's users.
    fn claims(&self, issuer: &str, client: &str, subject: &Subject, now: SystemTime) -> Value {
        let now = i64::try_from(clock::unix_seconds(now)).unwrap_or(i64::MAX);
        let expires = now.saturating_add(self.life);
        let issued = now.min(expires.saturating_sub(EXPIRED_LIFE));
        let mut claims = json!({
            "iss": issuer,
            "sub": subject.name,
            "aud": self.audience,
            "client_id": client,
            "iat": issued,
            "exp": expires,
            "jti": format!("{:032x}", rand::random::<u128>()),
            "scope": self.scope,
            "roles": subject.roles,
        });
        if let Some(members) = claims.as_object_mut() {
            if let Some(email) = subject.email {
                members.insert("email".to_owned(), email.into());
                members.insert("auth_time".to_owned(), issued.into());
            }
            if let Some(tenant) = subject.tenant {
                members.insert("tenant".to_owned(), tenant.into());
            }
            if let Some(acr) = &self.acr {
                members.insert("acr".to_owned(), acr.as_str().into());
            }
        }
        claims
    }
}

/// `Authorization: Basic`, whose two halves are form-encoded (RFC 6749 section 2.3.1).
fn basic_credentials(headers: &http::HeaderMap) -> Option<(String, String)> {
    use base64::Engine as _;
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let encoded = value.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((super::form::decode(id)?, super::form::decode(secret)?))
}

fn invalid(description: &str) -> Answer {
    fault(StatusCode::BAD_REQUEST, "invalid_request", description)
}

fn fault(status: StatusCode, error: &str, description: &str) -> Answer {
    no_store(answer(
        status,
        &json!({ "error": error, "error_description": description }),
    ))
}

fn no_store(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    answer
}

fn cached(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("public, max-age=300"),
    );
    answer
}

#[cfg(test)]
mod tests;
