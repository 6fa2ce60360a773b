//! The requests to try: printed as curl lines by `portcullis dev`, sent by `portcullis dev --try`.
//! One list for both, so that what is printed does what it says.

use std::net::SocketAddr;
use std::path::Path;

use http::Method;

use super::client::Answer;
use super::pki::Pki;
use super::token::{Request, TokenError};

/// How often the rate-limited request is sent: more than its limit has room for.
const BURST: u32 = 8;

/// Where the gateway is.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// The TLS listener.
    pub(super) public: SocketAddr,
    /// The admin listener, if it has a token to be asked with.
    pub(super) admin: Option<AdminPlace>,
    /// The development issuer.
    pub(super) issuer: String,
    /// The certificates.
    pub(super) pki: Pki,
}

/// The admin listener, and what it asks for.
#[derive(Debug, Clone)]
pub(super) struct AdminPlace {
    pub(super) address: SocketAddr,
    pub(super) token: String,
}

impl AdminPlace {
    /// One of its pages.
    pub(super) fn page(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The header that opens it.
    pub(super) fn header(&self) -> (&'static str, String) {
        ("authorization", format!("Bearer {}", self.token))
    }
}

impl Places {
    /// A page of the TLS listener, under a name its certificate bears.
    pub(super) fn public(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.public.port())
    }
}

/// One request, and what must come of it.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    /// What it shows.
    pub(super) title: &'static str,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: &'static str,
    /// The client certificate it presents.
    pub(super) certificate: Option<&'static str>,
    /// How often it is sent; the last answer counts.
    pub(super) times: u32,
    /// The status it must get.
    pub(super) status: u16,
    /// What else must hold.
    pub(super) check: Check,
    /// Whether its curl line is printed.
    pub(super) printed: bool,
}

/// What must hold beside the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing.
    Status,
    /// The problem document bears this `code`.
    Code(&'static str),
    /// `WWW-Authenticate` has this in it.
    Challenge(&'static str),
    /// The upstream received this header with this value.
    Received(&'static str, &'static str),
    /// There is a `Retry-After`, and earlier answers were good.
    Limited,
}

impl Check {
    /// What does not hold, in a few words.
    pub(super) fn fault(self, answer: &Answer, first_status: u16) -> Option<String> {
        match self {
            Self::Status => None,
            Self::Code(wanted) => {
                let got = answer.text("/code");
                (got != wanted).then(|| format!("code {wanted}, got {got}"))
            }
            Self::Challenge(part) => {
                let challenge = answer.header("www-authenticate").unwrap_or("none");
                (!challenge.contains(part))
                    .then(|| format!("a challenge with {part}, got {challenge}"))
            }
            Self::Received(name, wanted) => {
                let got = answer.text(&format!("/received/headers/{name}"));
                (got != wanted).then(|| format!("{name}: {wanted} at the upstream, got {got}"))
            }
            Self::Limited if answer.header("retry-after").is_none() => {
                Some("a Retry-After, got none".to_owned())
            }
            Self::Limited => (!(200..300).contains(&first_status))
                .then(|| format!("good answers at first, got {first_status}")),
        }
    }
}

impl Scene {
    fn new(title: &'static str, url: String, status: u16) -> Self {
        Self {
            title,
            method: Method::GET,
            url,
            headers: Vec::new(),
            body: "",
            certificate: None,
            times: 1,
            status,
            check: Check::Status,
            printed: false,
        }
    }

    fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn certificate(mut self, name: &'static str) -> Self {
        self.certificate = Some(name);
        self
    }

    fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    fn printed(mut self) -> Self {
        self.printed = true;
        self
    }

    /// The curl line that does the same.
    pub(super) fn curl(&self, pki: &Pki) -> String {
        let mut line = match self.times {
            1 => "curl -sS -i".to_owned(),
            _ => "curl -sS -o /dev/null -w '%{http_code}\\n'".to_owned(),
        };
        if self.url.starts_with("https:") {
            line.push_str(&format!(" --cacert {}", quoted(&pki.authority())));
        }
        if let Some(name) = self.certificate {
            let (certificate, key) = pki.client(name);
            line.push_str(&format!(
                " --cert {} --key {}",
                quoted(&certificate),
                quoted(&key)
            ));
        }
        if self.method != Method::GET {
            line.push_str(&format!(" -X {}", self.method));
        }
        for (name, value) in &self.headers {
            line.push_str(&format!(" -H '{name}: {value}'"));
        }
        if !self.body.is_empty() {
            line.push_str(&format!(" -d '{}'", self.body));
        }
        line.push_str(&format!(" {}", self.url));
        match self.times {
            1 => line,
            times => format!("for i in $(seq {times}); do {line}; done"),
        }
    }
}

/// A path as a shell word.
fn quoted(path: &Path) -> String {
    let text = path.strip_prefix(".").unwrap_or(path).display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// All scenes, with fresh tokens in them.
pub(super) async fn scenes(places: &Places) -> Result<Vec<Scene>, TokenError> {
    let issuer = places.issuer.as_str();
    let alice = Request::user("alice").mint(issuer).await?;
    let bob = Request::user("bob").mint(issuer).await?;
    let carol = Request::user("carol").mint(issuer).await?;
    let strong = Request {
        acr: Some("urn:example:mfa".to_owned()),
        ..Request::user("carol")
    };
    let strong = strong.mint(issuer).await?;
    let expired = Request::user("alice").expired().mint(issuer).await?;
    let elsewhere = Request {
        audience: Some("https://elsewhere.example.test".to_owned()),
        ..Request::user("alice")
    };
    let elsewhere = elsewhere.mint(issuer).await?;

    let at = |path: &str| places.public(path);
    let own_order = || at("/orders/1001");
    let mut scenes = vec![
        Scene::new("open route, no credentials", at("/status"), 200),
        Scene::new("allowed: alice reads her order", own_order(), 200)
            .bearer(&alice)
            .check(Check::Received("x-user-id", "alice"))
            .printed(),
        Scene::new(
            "denied: alice reads the order of dave",
            at("/orders/1002"),
            403,
        )
        .bearer(&alice)
        .check(Check::Code("denied"))
        .printed(),
        Scene::new("allowed: bob, a clerk, reads it", at("/orders/1002"), 200).bearer(&bob),
        Scene::new("no token", own_order(), 401)
            .check(Check::Challenge("Bearer realm="))
            .printed(),
        Scene::new("expired token", own_order(), 401)
            .bearer(&expired)
            .check(Check::Challenge("invalid_token"))
            .printed(),
        Scene::new("token for another audience", own_order(), 401)
            .bearer(&elsewhere)
            .check(Check::Challenge("invalid_token"))
            .printed(),
        Scene::new(
            "forged token: the claims of alice, the signature of bob",
            own_order(),
            401,
        )
        .bearer(&forged(&alice, &bob))
        .check(Check::Challenge("invalid_token")),
        Scene::new("admin without a second factor", at("/admin/orders"), 401)
            .bearer(&carol)
            .check(Check::Challenge("insufficient_user_authentication")),
        Scene::new("admin with a second factor", at("/admin/orders"), 200).bearer(&strong),
        Scene::new(
            "mutual TLS: a registered partner",
            at("/partners/orders"),
            200,
        )
        .certificate("payments")
        .printed(),
        Scene::new(
            "mutual TLS: a verified stranger",
            at("/partners/orders"),
            403,
        )
        .certificate("alice-laptop")
        .check(Check::Code("denied")),
        Scene::new(
            "partner route without a certificate",
            at("/partners/orders"),
            401,
        ),
        Scene::new(
            "spoofed identity: alice says she is carol",
            own_order(),
            200,
        )
        .bearer(&alice)
        .header("x-user-id", "carol")
        .check(Check::Received("x-user-id", "alice"))
        .printed(),
        Scene::new(
            "ambiguous path: an encoded slash",
            at("/orders/..%2fadmin"),
            400,
        )
        .bearer(&alice)
        .check(Check::Code("bad_request")),
        Scene::new("unknown path", at("/nowhere"), 404).check(Check::Code("no_route")),
        Scene {
            method: Method::POST,
            body: r#"{"item":"tea"}"#,
            times: BURST,
            ..Scene::new("rate limited: too many new orders", at("/orders"), 429)
                .bearer(&alice)
                .header("content-type", "application/json")
                .check(Check::Limited)
                .printed()
        },
    ];
    if let Some(admin) = &places.admin {
        let scene = |title, status| Scene::new(title, admin.page("/status"), status);
        scenes.push(scene("admin without its token", 401));
        let (name, value) = admin.header();
        let known = scene("admin: what is in force", 200).header(name, &value);
        scenes.push(known.printed());
    }
    Ok(scenes)
}

/// The header and claims of one token under the signature of another.
fn forged(claims: &str, signature: &str) -> String {
    let (claims, _) = claims.rsplit_once('.').unwrap_or_default();
    let (_, signature) = signature.rsplit_once('.').unwrap_or_default();
    format!("{claims}.{signature}")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::super::issuer::Issuer;
    use super::super::service::bind;
    use super::*;

    fn places(issuer: &Issuer) -> Places {
        Places {
            public: SocketAddr::from(([127, 0, 0, 1], 8443)),
            admin: Some(AdminPlace {
                address: SocketAddr::from(([127, 0, 0, 1], 9901)),
                token: "0123456789abcdef".to_owned(),
            }),
            issuer: issuer.url.clone(),
            pki: Pki {
                folder: "./certs/dev".into(),
                fresh: false,
            },
        }
    }

    #[tokio::test]
    async fn curl_lines_can_be_pasted() {
        let issuer = Issuer::start(bind(0).unwrap()).unwrap();
        let places = places(&issuer);
        let scenes = scenes(&places).await.unwrap();
        let lines: Vec<String> = scenes.iter().map(|scene| scene.curl(&places.pki)).collect();
        for (scene, line) in scenes.iter().zip(&lines) {
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(line.matches('\'').count() % 2, 0, "{line}");
            if scene.url.starts_with("https:") {
                assert!(line.contains("--cacert certs/dev/ca.pem"), "{line}");
            }
        }
        let mutual = lines.iter().find(|line| line.contains("payments")).unwrap();
        assert!(mutual.contains("--cert certs/dev/payments.pem --key certs/dev/payments.key"));
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("for i in $(seq 8);"))
        );
        assert!(lines.iter().any(|line| line.contains("Bearer eyJ")));
        assert_eq!(scenes.iter().filter(|scene| scene.printed).count(), 9);
    }

    #[test]
    fn checks_name_what_does_not_hold() {
        let answer = Answer {
            status: 403,
            headers: HeaderMap::new(),
            body: Bytes::from_static(
                br#"{"code":"denied","received":{"headers":{"x-user-id":"carol"}}}"#,
            ),
        };
        assert_eq!(Check::Code("denied").fault(&answer, 403), None);
        assert!(Check::Code("nied").fault(&answer, 403).is_some());
        assert!(
            Check::Received("x-user-id", "alice")
                .fault(&answer, 403)
                .is_some()
        );
        assert!(Check::Challenge("Bearer").fault(&answer, 403).is_some());
        assert!(Check::Limited.fault(&answer, 201).is_some());
    }

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(quoted(Path::new("./a/b.pem")), "a/b.pem");
        assert_eq!(quoted(Path::new("/my files/ca.pem")), "'/my files/ca.pem'");
    }
}
