//! The admin listener over a real socket.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::audit::Audit;
use crate::limit::LimitSet;
use crate::metrics::Metrics;
use crate::request::Rules;
use crate::revocation::Revocations;
use crate::route::RouteTable;
use crate::schema::Severity;
use crate::snapshot::{Effective, Snapshot};
use crate::telemetry::Tracing;
use crate::upstream::headers::IdentityHeaders;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[derive(Debug)]
struct Said(&'static str);

impl Effective for Said {
    fn yaml(&self) -> Result<String, String> {
        Ok(self.0.to_owned())
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        bundles: crate::bundle::Bundles::default(),
        revision: "rev1".into(),
        compiled_at: crate::clock::now(),
        effective: Arc::new(Said("admin:\n  token: env:ADMIN_TOKEN\n")),
        files: Vec::new(),
        rules: Rules::default(),
        listeners: [].into(),
        issuers: [].into(),
        certificates: crate::authn::client_certificate::ClientCertificateConfig::default()
            .compile(None),
        policies: [].into(),
        candidates: Arc::default(),
        limits: LimitSet::default(),
        upstreams: [].into(),
        identity: Arc::new(IdentityHeaders::default()),
        revocation: Arc::new(Revocations::default()),
        routes: RouteTable::default(),
        audit: Arc::new(Audit::default()),
        tracing: Arc::new(Tracing::default()),
        head_timeout: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(30),
        metrics: Arc::new(Metrics::default()),
        epoch: Arc::default(),
    }
}

struct Served {
    address: SocketAddr,
    draining: Arc<AtomicBool>,
}

async fn start(token: bool, outcome: Result<String, Vec<Problem>>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let draining = Arc::new(AtomicBool::new(false));
    let reload: Reload = Arc::new(move || {
        let outcome = outcome.clone();
        Box::pin(async move { outcome })
    });
    let admin = Admin {
        address: Some(address),
        token: token.then(|| Secret::new(TOKEN.into())),
        hosts: vec!["admin.internal".to_owned()],
    };
    let live = Arc::new(Live::new(snapshot()));
    let state = Arc::new(AdminState::new(
        live,
        reload,
        Arc::clone(&draining),
        Arc::new(ArcSwap::from_pointee(admin)),
        Workers::asked_by(|_| (0, tokio::sync::mpsc::unbounded_channel().1)),
    ));
    tokio::spawn(serve(listener, state));
    Served { address, draining }
}

impl Served {
    async fn raw(&self, bytes: &str) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A reset after the answer is no failure of what is tested here.
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        timeout(Duration::from_secs(20), exchange).await.unwrap()
    }

    async fn ask(&self, line: &str, headers: &[&str]) -> (u16, String) {
        let mut request = format!("{line} HTTP/1.1\r\n");
        if !headers.iter().any(|header| header.starts_with("host:")) {
            request.push_str(&format!("host: {}\r\n", self.address));
        }
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        request.push_str("\r\n");
        let answer = self.raw(&request).await;
        let status = answer[9..12].parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    async fn json(&self, line: &str, headers: &[&str]) -> (u16, Value) {
        let (status, body) = self.ask(line, headers).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

fn reloaded() -> Result<String, Vec<Problem>> {
    Ok("rev2".to_owned())
}

#[tokio::test]
async fn open_pages_answer_without_a_token() {
    let served = start(true, reloaded()).await;
    assert_eq!(served.ask("GET /live", &[]).await.0, 200);
    let (status, ready) = served.json("GET /ready", &[]).await;
    assert_eq!((status, &ready["ready"]), (200, &Value::Bool(true)));
    let (status, metrics) = served.ask("GET /metrics", &[]).await;
    assert_eq!(status, 200);
    assert!(metrics.ends_with("# EOF\n"));
    let (status, index) = served.ask("GET /", &[]).await;
    assert_eq!(status, 200);
    assert!(index.contains("/reload"));
    assert_eq!(served.ask("HEAD /live", &[]).await, (200, String::new()));
    let known = format!("authorization: Bearer {TOKEN}");
    assert_eq!(served.ask("GET /nothing", &[&known]).await.0, 404);
    assert_eq!(served.ask("POST /live", &[]).await.0, 405);
    assert_eq!(
        served
            .ask(
                "DELETE /reload",
                &[&format!("authorization: Bearer {TOKEN}")]
            )
            .await
            .0,
        405
    );
}

#[tokio::test]
async fn a_gateway_that_leaves_is_alive_but_not_ready() {
    let served = start(false, reloaded()).await;
    served.draining.store(true, Ordering::Relaxed);
    let (status, ready) = served.json("GET /ready", &[]).await;
    assert_eq!(status, 503);
    assert!(
        ready["reasons"][0]
            .as_str()
            .unwrap()
            .starts_with("draining")
    );
    assert_eq!(served.ask("GET /live", &[]).await.0, 200);
}

#[tokio::test]
async fn protected_pages_require_the_token() {
    let served = start(true, reloaded()).await;
    let right = format!("authorization: Bearer {TOKEN}");
    for line in ["GET /config", "GET /status", "POST /reload"] {
        assert_eq!(served.ask(line, &[]).await.0, 401, "{line}");
        assert_eq!(
            served.ask(line, &["x-portcullis-admin: 1"]).await.0,
            401,
            "{line}"
        );
        for wrong in ["Bearer x", "Basic eDp4", &format!("Bearer {TOKEN}x")] {
            let header = format!("authorization: {wrong}");
            assert_eq!(served.ask(line, &[&header]).await.0, 401, "{line} {wrong}");
        }
        assert_eq!(
            served.ask(line, &[&right, &right]).await.0,
            401,
            "{line} twice"
        );
        assert_eq!(served.ask(line, &[&right]).await.0, 200, "{line}");
    }
    let (_, config) = served.ask("GET /config", &[&right]).await;
    assert!(config.contains("env:ADMIN_TOKEN") && !config.contains(TOKEN));
    let (_, status) = served.json("GET /status", &[&right]).await;
    assert_eq!(status["revision"], "rev1");
    assert_eq!(status["audit"]["accepting"], true);
}

/// Every page of the index but those that are open: method and path.
fn protected() -> Vec<String> {
    let lines = pages::INDEX.lines().filter(|line| {
        let method = line.split(' ').next();
        matches!(method, Some("GET" | "POST" | "DELETE"))
    });
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            // Of alternatives, the first.
            let path = path.split('|').next().unwrap();
            format!("{method} {}", path.trim_end_matches([';', ',']))
        })
        .filter(|line| !pages::is_open(line.split_once(' ').unwrap().1))
        .collect()
}

#[tokio::test]
async fn without_a_configured_token_nobody_is_told_anything_or_obeyed() {
    let served = start(false, reloaded()).await;
    for path in [
        "/", "/live", "/ready", "/metrics", "/page", "/page.js", "/session",
    ] {
        let (status, text) = served.ask(&format!("GET {path}"), &[]).await;
        assert_eq!(status, 200, "{path}");
        // What is open holds nothing of the configuration.
        assert!(!text.contains("env:ADMIN_TOKEN"), "{path}");
    }
    let all = protected();
    assert!(all.len() > 20, "{all:?}");
    let odd = ["GET /decisions/abc", "GET /nothing", "PUT /config"];
    let bearer = format!("authorization: Bearer {TOKEN}");
    for line in all.iter().map(String::as_str).chain(odd) {
        for header in [
            "x-portcullis-admin: 1",
            &bearer,
            "authorization: Bearer ",
            "x-portcullis-session: a",
        ] {
            let (status, text) = served.ask(line, &[header]).await;
            assert_eq!(status, 403, "{line} {header}");
            // The operator is told what to do.
            assert!(text.contains("set `admin.token: file:PATH`"), "{text}");
        }
    }
    let (_, session) = served.json("GET /session", &[]).await;
    assert_eq!(
        (&session["login"], &session["open"]),
        (&false.into(), &false.into())
    );
    assert!(session["why_not"].as_str().unwrap().contains("admin.token"));
    let own = format!("origin: http://{}", served.address);
    let login = format!("{{\"token\":\"{TOKEN}\"}}");
    let meant = "x-portcullis-admin: 1";
    let answer = whole(&served, "POST /login", &[&own, meant], &login).await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && !answer.contains("set-cookie"),
        "{answer}"
    );
}

#[tokio::test]
async fn no_page_but_the_open_ones_answers_who_shows_no_token() {
    let served = start(true, reloaded()).await;
    for line in protected() {
        for header in ["x-portcullis-admin: 1", "x-portcullis-session: a"] {
            assert_eq!(served.ask(&line, &[header]).await.0, 401, "{line}");
        }
    }
}

#[test]
fn an_admin_listener_without_a_token_is_named_when_it_loads() {
    let warned = |text: &str| {
        let config: AdminConfig = serde_yaml::from_str(text).unwrap();
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        assert!(cx.at("admin", |cx| config.compile(cx)).is_some());
        let problems = cx.finish().0.into_iter();
        problems
            .map(|problem| (problem.severity, problem.message, problem.help.unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(warned("{}"), []);
    let [(severity, message, help)] = &warned("address: 127.0.0.1:9901")[..] else {
        panic!("one warning");
    };
    assert_eq!(*severity, Severity::Warning);
    assert!(message.contains("has no token"), "{message}");
    assert!(help.contains("token: file:PATH") && help.contains("openssl"));
}

#[tokio::test]
async fn no_page_of_a_browser_reaches_the_listener() {
    let served = start(true, reloaded()).await;
    let known = format!("authorization: Bearer {TOKEN}");
    for host in [
        "evil.test",
        "evil.test:80",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
    ] {
        let header = format!("host: {host}");
        let (status, _) = served.ask("GET /status", &[&header, &known]).await;
        assert_eq!(status, 421, "{host}");
    }
    for host in [
        "localhost:9901",
        "[::1]:9901",
        "127.0.0.1",
        "ADMIN.internal",
    ] {
        let header = format!("host: {host}");
        let (status, _) = served.ask("GET /status", &[&header, &known]).await;
        assert_eq!(status, 200, "{host}");
    }
    let origin = ["origin: http://evil.test", &known];
    assert_eq!(served.ask("POST /reload", &origin).await.0, 403);
    assert_eq!(served.ask("GET /status", &origin).await.0, 403);
    let (status, answer) = served.json("POST /reload", &[&known]).await;
    assert_eq!((status, answer["revision"].as_str()), (200, Some("rev2")));
}

#[tokio::test]
async fn a_reload_that_fails_tells_every_problem() {
    let problem = Problem {
        severity: Severity::Error,
        file: "gateway.yaml".into(),
        line: Some(3),
        column: None,
        path: "routes[0].policy".into(),
        message: "there is no policy `x`".into(),
        help: None,
    };
    let served = start(true, Err(vec![problem.clone(), problem])).await;
    let known = format!("authorization: Bearer {TOKEN}");
    let (status, answer) = served.json("POST /reload", &[&known]).await;
    assert_eq!(status, 422);
    assert_eq!(answer["errors"], 2);
    assert_eq!(answer["problems"][1]["path"], "routes[0].policy");
    assert_eq!(answer["problems"][1]["line"], 3);
}

#[tokio::test]
async fn large_and_garbled_heads_are_refused_and_the_listener_lives() {
    let served = start(false, reloaded()).await;
    let many = "x: y\r\n".repeat(MAX_HEADERS + 10);
    let answer = served
        .raw(&format!("GET /live HTTP/1.1\r\n{many}\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = "x".repeat(MAX_HEAD + 1);
    let answer = served.raw(&format!("GET /{long} HTTP/1.1\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = served.raw("\0\0\0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(served.ask("GET /live", &[]).await.0, 200);
}

#[tokio::test]
async fn idle_connections_cannot_hold_more_than_their_seats_and_are_let_go() {
    let served = start(false, reloaded()).await;
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    // All seats are taken by connections that say nothing; their time ends and ours comes.
    assert_eq!(served.ask("GET /live", &[]).await.0, 200);
}

#[test]
fn an_admin_listener_is_local_unless_said_and_secured() {
    let compile = |text: &str| {
        let config: AdminConfig = serde_yaml::from_str(text).unwrap();
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        let admin = cx.at("admin", |cx| config.compile(cx));
        let places: Vec<String> = cx.finish().0.into_iter().map(|p| p.path).collect();
        (admin, places)
    };
    assert!(compile("{}").0.unwrap().address.is_none());
    assert!(compile("address: 127.0.0.1:9901").0.is_some());
    assert!(compile("address: '[::1]:9901'").0.is_some());
    assert!(compile("address: '[::ffff:127.0.0.1]:9901'").0.is_some());
    let (none, places) = compile("{ address: 0.0.0.0:9901, hosts: ['a b', 'x:1'] }");
    assert!(none.is_none());
    assert_eq!(
        places,
        ["admin.address", "admin", "admin.hosts[0]", "admin.hosts[1]"]
    );
    assert_eq!(
        compile("{ address: 0.0.0.0:9901, allow_remote: true }").1,
        ["admin"]
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let with_token = |token: &str| {
        std::fs::write(&file, token).unwrap();
        compile(&format!(
            "{{ address: 0.0.0.0:9901, allow_remote: true, token: 'file:{}' }}",
            file.display()
        ))
    };
    assert_eq!(with_token("short").1, ["admin.token"]);
    let admin = with_token(&format!("{TOKEN}\n")).0.unwrap();
    assert_eq!(admin.token.unwrap().expose(), TOKEN.as_bytes());
}

/// The answer with its head.
async fn whole(served: &Served, line: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers
        .iter()
        .map(|header| format!("{header}\r\n"))
        .collect();
    let host = if headers.contains("host:") {
        String::new()
    } else {
        format!("host: {}\r\n", served.address)
    };
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\n{host}{headers}content-length: {length}\r\n\r\n{body}");
    served.raw(&request).await
}

#[tokio::test]
async fn a_browser_gets_the_page_under_a_policy_without_inline_and_eval() {
    let served = start(true, reloaded()).await;
    let page = whole(&served, "GET /", &["accept: text/html,*/*;q=0.8"], "").await;
    assert!(
        page.starts_with("HTTP/1.1 200") && page.contains("<!doctype html>"),
        "{page}"
    );
    let policy = page
        .lines()
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("data:"));
    assert!(policy.contains("require-trusted-types-for 'script'"));
    assert!(page.contains("cross-origin-resource-policy: same-origin"));
    let index = whole(&served, "GET /", &["accept: */*"], "").await;
    assert!(index.contains("portcullis admin") && !index.contains("<!doctype"));
    for (path, kind) in [
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let part = whole(&served, &format!("GET {path}"), &[], "").await;
        assert!(part.contains(&format!("content-type: {kind}")), "{path}");
        assert!(part.contains("content-security-policy: default-src 'none'"));
        assert_eq!(served.ask(&format!("POST {path}"), &[]).await.0, 405);
    }
}

#[tokio::test]
async fn a_page_of_another_origin_reads_nothing_and_ours_posts_nothing_but_its_session() {
    let served = start(true, reloaded()).await;
    let known = format!("authorization: Bearer {TOKEN}");
    let own = format!("origin: http://{}", served.address);
    // Reading needs no Origin, so none is taken, not even ours.
    assert_eq!(served.ask("GET /status", &[&own, &known]).await.0, 403);
    for line in ["POST /reload", "POST /revocations", "DELETE /revocations"] {
        let headers = [own.as_str(), known.as_str()];
        assert_eq!(served.ask(line, &headers).await.0, 403, "{line}");
    }
    for site in ["cross-site", "same-site", "something"] {
        let site = format!("sec-fetch-site: {site}");
        let (status, _) = served.ask("GET /status", &[&site, &known]).await;
        assert_eq!(status, 403, "{site}");
        assert_eq!(served.ask("GET /page.js", &[&site]).await.0, 403, "{site}");
        let linked = [
            site.as_str(),
            "sec-fetch-mode: navigate",
            "accept: text/html",
        ];
        assert_eq!(served.ask("GET /", &linked).await.0, 200, "{site}");
        let not_linked = [site.as_str(), "sec-fetch-mode: no-cors"];
        assert_eq!(served.ask("GET /", &not_linked).await.0, 403, "{site}");
        let elsewhere = [site.as_str(), "sec-fetch-mode: navigate", &known];
        assert_eq!(served.ask("GET /status", &elsewhere).await.0, 403, "{site}");
    }
    for site in ["same-origin", "none"] {
        let site = format!("sec-fetch-site: {site}");
        let (status, _) = served.ask("GET /status", &[&site, &known]).await;
        assert_eq!(status, 200, "{site}");
    }
    // A rebound name is refused, whatever it sends.
    let rebound = ["host: evil.test", "accept: text/html"];
    assert_eq!(served.ask("GET /", &rebound).await.0, 421);
}

#[tokio::test]
async fn a_session_reads_with_both_halves_and_changes_nothing() {
    let served = start(true, reloaded()).await;
    let own = format!("origin: http://{}", served.address);
    let login = format!("{{\"token\":\"{TOKEN}\"}}");
    let meant = "x-portcullis-admin: 1";
    let refused = |answer: &str, status: &str| answer.starts_with(&format!("HTTP/1.1 {status}"));

    let (_, session) = served.json("GET /session", &[]).await;
    assert_eq!(
        (&session["login"], &session["open"]),
        (&true.into(), &false.into())
    );
    // Not from elsewhere, not without meaning it, not with another token.
    let elsewhere = ["origin: http://evil.test", meant];
    assert!(refused(
        &whole(&served, "POST /login", &elsewhere, &login).await,
        "403"
    ));
    let port = served.address.port().wrapping_add(1);
    let neighbour = format!("origin: http://127.0.0.1:{port}");
    assert!(refused(
        &whole(&served, "POST /login", &[&neighbour, meant], &login).await,
        "403"
    ));
    assert!(refused(
        &whole(&served, "POST /login", &[&own], &login).await,
        "403"
    ));
    let wrong = whole(&served, "POST /login", &[&own, meant], "{\"token\":\"x\"}").await;
    assert!(
        refused(&wrong, "401") && !wrong.contains("set-cookie"),
        "{wrong}"
    );
    let unread = whole(&served, "POST /login", &[&own, meant], "token=x").await;
    assert!(refused(&unread, "400"), "{unread}");
    assert_eq!(served.ask("GET /login", &[]).await.0, 405);

    let opened = whole(&served, "POST /login", &[&own, meant], &login).await;
    assert!(refused(&opened, "200"), "{opened}");
    let cookie = opened
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap();
    assert!(
        cookie.ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"),
        "{cookie}"
    );
    let cookie = format!("cookie: a=b; {}", cookie.split(';').next().unwrap());
    let document: Value = serde_json::from_str(opened.split_once("\r\n\r\n").unwrap().1).unwrap();
    let key = format!(
        "x-portcullis-session: {}",
        document["key"].as_str().unwrap()
    );
    assert!(!opened.contains(TOKEN));

    let both = [cookie.as_str(), key.as_str()];
    for page in [
        "/status",
        "/config",
        "/streams",
        "/overview",
        "/limits",
        "/upstreams",
        "/keys",
    ] {
        assert_eq!(
            served.ask(&format!("GET {page}"), &both).await.0,
            200,
            "{page}"
        );
        assert_eq!(
            served.ask(&format!("GET {page}"), &[&cookie]).await.0,
            401,
            "{page}"
        );
        assert_eq!(
            served.ask(&format!("GET {page}"), &[&key]).await.0,
            401,
            "{page}"
        );
    }
    let meaning = [cookie.as_str(), key.as_str(), meant];
    for line in ["POST /reload", "POST /revocations", "POST /keys/distrust"] {
        assert_eq!(served.ask(line, &meaning).await.0, 401, "{line}");
    }
    let (_, session) = served.json("GET /session", &both).await;
    assert_eq!(session["open"], true);

    let ended = whole(&served, "POST /logout", &[&own, meant, &cookie, &key], "").await;
    assert!(ended.contains("Max-Age=0"), "{ended}");
    assert_eq!(served.ask("GET /status", &both).await.0, 401);
}

#[tokio::test]
async fn while_the_record_of_a_trace_is_looked_for_other_work_of_the_thread_goes_on() {
    let state = AdminState::new(
        Arc::new(Live::new(snapshot())),
        Arc::new(|| Box::pin(async { reloaded() })),
        Arc::default(),
        Arc::new(ArcSwap::from_pointee(Admin {
            address: None,
            token: None,
            hosts: Vec::new(),
        })),
        Workers::asked_by(|_| (0, tokio::sync::mpsc::unbounded_channel().1)),
    );
    let recent = Arc::clone(state.live.current().audit.recent());
    let (held, is_held) = tokio::sync::oneshot::channel();
    let (let_go, told) = std::sync::mpsc::channel();
    // A search that takes until something else was done on the thread that asks.
    let search = std::thread::spawn(move || {
        let held_until = recent.held();
        held.send(()).unwrap();
        let others_went_on = told.recv_timeout(Duration::from_secs(10)).is_ok();
        drop(held_until);
        others_went_on
    });
    is_held.await.unwrap();
    let seen = crate::audit::traces::Seen {
        request_id: "0123456789abcdef".to_owned(),
        stages: Vec::new(),
        refused_at: None,
    };
    let (told, ()) = tokio::join!(traces::request(&state, &seen), async {
        // Whoever searched here would have been in the way for ten seconds, and is gone.
        let _ = let_go.send(());
    });
    assert_eq!(told["record"], Value::Null);
    assert!(search.join().unwrap(), "nothing else was done meanwhile");
}
