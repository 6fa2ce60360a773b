//! What of a configuration does not load, and why.

use std::collections::BTreeSet;

use super::*;
use crate::authn::testing::{self, BLOCK, Signer, jwks};
use crate::metrics::Metrics;
use crate::schema::Problem;

struct Bench {
    folder: tempfile::TempDir,
    issuers: Named<Arc<Issuer>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::new("ES256", "es");
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("jwks.json", &jwks(&[&signer]));
        write("secret", "0123456789abcdef");
        write("short", "0123456789abcde");
        write("hmac", &"s".repeat(32));
        let dev = testing::compile(folder.path(), BLOCK, None).unwrap();
        let shared = "issuer: https://shared.test\nkeys: { secret: \"file:hmac\" }\n\
                      audiences: [a]\nalgorithms: [HS256]\n";
        let shared = testing::compile(folder.path(), shared, None).unwrap();
        let issuers = [("dev".to_owned(), dev), ("shared".to_owned(), shared)].into();
        Self { folder, issuers }
    }

    /// The problems of a `revocation` section in YAML.
    fn problems(&self, yaml: &str) -> Vec<Problem> {
        #[derive(serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[derive(Default)]
        struct Section {
            backchannel_logout: Vec<LogoutConfig>,
            streams: Named<StreamConfig>,
            redis: Option<RedisConfig>,
        }
        let section: Section = serde_yaml::from_str(yaml).unwrap();
        let names: BTreeSet<String> = ["dev", "shared", "broken"].map(str::to_owned).into();
        let listeners = BTreeSet::from(["public".to_owned()]);
        let known = Known {
            issuers: &self.issuers,
            issuer_names: &names,
            listener_names: &listeners,
        };
        let file = self.folder.path().join("gateway.yaml");
        let mut cx = Compile::new(&file, Arc::<Metrics>::default());
        let sections = Sections {
            logout: &section.backchannel_logout,
            streams: &section.streams,
            redis: section.redis.as_ref(),
        };
        let compiled = sections.compile(&known, None, &mut cx);
        let errors = cx.errors();
        assert!(compiled.is_none() || errors == 0, "{yaml}");
        cx.finish().0
    }

    #[track_caller]
    fn places(&self, yaml: &str) -> Vec<String> {
        self.problems(yaml)
            .into_iter()
            .map(|problem| problem.path)
            .collect()
    }
}

#[test]
fn what_is_whole_loads() {
    let bench = Bench::new();
    let whole = r#"
backchannel_logout:
  - { path: /oidc/logout, issuer: dev, audiences: [web] }
  - { path: /oidc/logout, issuer: dev, audiences: [b], hosts: [b.example.test], listeners: [public] }
streams:
  idp: { issuer: dev, audiences: [us], push: { path: /ssf, token: "file:secret" } }
  risc:
    transmitter: { issuer: https://t.test, keys: { file: jwks.json }, algorithms: [ES256] }
    audiences: [us]
    subjects_of: [dev]
    email_is_subject: true
    poll: { url: "http://127.0.0.1:1/poll", token: "file:secret" }
redis: { url: "redis://127.0.0.1:6379/3", username: gateway, password: "file:secret" }
"#;
    // Two end-points that one request could be for are one too many.
    assert_eq!(bench.places(whole), ["backchannel_logout[1].path"]);
    let apart = whole.replace(
        "issuer: dev, audiences: [web]",
        "issuer: dev, audiences: [web], hosts: [a.example.test]",
    );
    assert_eq!(bench.places(&apart), Vec::<String>::new());
}

#[test]
fn each_mistake_is_a_problem_at_its_place() {
    let bench = Bench::new();
    let logout = |change: &str| format!("backchannel_logout: [{{ {change} }}]");
    for (yaml, place) in [
        (
            logout("path: oidc, issuer: dev, audiences: [w]"),
            "backchannel_logout[0].path",
        ),
        (
            logout("path: /, issuer: dev, audiences: [w]"),
            "backchannel_logout[0].path",
        ),
        (
            logout("path: /a/../b, issuer: dev, audiences: [w]"),
            "backchannel_logout[0].path",
        ),
        (
            logout("path: \"/a?b\", issuer: dev, audiences: [w]"),
            "backchannel_logout[0].path",
        ),
        (
            logout("path: /a, issuer: div, audiences: [w]"),
            "backchannel_logout[0].issuer",
        ),
        (
            logout("path: /a, issuer: shared, audiences: [w]"),
            "backchannel_logout[0].issuer",
        ),
        (
            logout("path: /a, issuer: dev, audiences: []"),
            "backchannel_logout[0].audiences",
        ),
        (
            logout("path: /a, issuer: dev, audiences: [\"\"]"),
            "backchannel_logout[0].audiences",
        ),
        (
            logout("path: /a, issuer: dev, audiences: [w], max_age: 2h"),
            "backchannel_logout[0].max_age",
        ),
        (
            logout("path: /a, issuer: dev, audiences: [w], hosts: [A.test]"),
            "backchannel_logout[0].hosts[0]",
        ),
        (
            logout("path: /a, issuer: dev, audiences: [w], hosts: [\"a.test:1\"]"),
            "backchannel_logout[0].hosts[0]",
        ),
        (
            logout("path: /a, issuer: dev, audiences: [w], listeners: [pubic]"),
            "backchannel_logout[0].listeners[0]",
        ),
    ] {
        assert_eq!(bench.places(&yaml), [place], "{yaml}");
    }
    let push = "push: { path: /ssf, token: \"file:secret\" }";
    for (stream, place) in [
        (format!("s: {{ issuer: dev, audiences: [] , {push} }}"), "streams.s.audiences"),
        ("s: { issuer: dev, audiences: [us] }".to_owned(), "streams.s"),
        (format!("s: {{ issuer: dev, audiences: [us], subjects_of: [none], {push} }}"), "streams.s.subjects_of[0]"),
        (format!("s: {{ issuer: dev, audiences: [us], max_age: 1s, {push} }}"), "streams.s.max_age"),
        (format!("\"a b\": {{ issuer: dev, audiences: [us], {push} }}"), "streams.a b"),
        (format!("redis: {{ issuer: dev, audiences: [us], {push} }}"), "streams.redis"),
        (
            format!("s: {{ issuer: dev, audiences: [us], email_is_subject: true, subjects_of: [dev, shared], {push} }}"),
            "streams.s.email_is_subject",
        ),
        (
            "s: { issuer: dev, audiences: [us], push: { path: /ssf, token: \"file:short\" } }".to_owned(),
            "streams.s.push.token",
        ),
        (
            "s: { issuer: dev, audiences: [us], poll: { url: \"http://10.0.0.1/\" } }".to_owned(),
            "streams.s.poll.url",
        ),
        (
            "s: { issuer: dev, audiences: [us], poll: { url: \"https://t.test/\", max_events: 0 } }".to_owned(),
            "streams.s.poll.max_events",
        ),
        (
            "s: { issuer: dev, audiences: [us], stale_after: 30s, poll: { url: \"https://t.test/\" } }".to_owned(),
            "streams.s.stale_after",
        ),
        (
            format!("s: {{ transmitter: {{ issuer: t, keys: {{ secret: \"file:hmac\" }}, algorithms: [HS256] }}, audiences: [us], subjects_of: [dev], {push} }}"),
            "streams.s.transmitter.algorithms",
        ),
    ] {
        let yaml = format!("streams: {{ {stream} }}");
        assert_eq!(bench.places(&yaml), [place], "{yaml}");
    }
    for (redis, place) in [
        ("url: \"http://127.0.0.1\"", "redis.url"),
        ("url: \"redis://user:secret@127.0.0.1\"", "redis.url"),
        ("url: \"redis://127.0.0.1/x\"", "redis.url"),
        ("url: \"redis://127.0.0.1\", username: u", "redis.username"),
        ("url: \"redis://127.0.0.1\", timeout: 1ms", "redis.timeout"),
        (
            "url: \"redis://127.0.0.1\", stale_after: 1ms",
            "redis.stale_after",
        ),
        ("url: \"redis://127.0.0.1\", prefix: \"\"", "redis.prefix"),
        (
            "url: \"redis://127.0.0.1\", prefix: \"a b\"",
            "redis.prefix",
        ),
        (
            "url: \"redis://127.0.0.1\", tls: { server_name: a.test }",
            "redis.tls",
        ),
        (
            "url: \"redis://127.0.0.1\", password: \"file:none\"",
            "redis.password",
        ),
    ] {
        let yaml = format!("redis: {{ {redis} }}");
        assert_eq!(bench.places(&yaml), [place], "{yaml}");
    }
}

#[test]
fn a_stream_says_who_signs_and_whose_subjects_it_speaks_about() {
    let bench = Bench::new();
    let push = "push: { path: /ssf, token: \"file:secret\" }";
    let neither = format!("streams: {{ s: {{ audiences: [us], subjects_of: [dev], {push} }} }}");
    assert_eq!(bench.places(&neither), ["streams.s"]);
    let transmitter = "transmitter: { issuer: t, keys: { file: jwks.json }, algorithms: [ES256] }";
    let both = format!(
        "streams: {{ s: {{ issuer: dev, {transmitter}, audiences: [us], subjects_of: [dev], {push} }} }}"
    );
    assert_eq!(bench.places(&both), ["streams.s"]);
    let about_nobody = format!("streams: {{ s: {{ {transmitter}, audiences: [us], {push} }} }}");
    assert_eq!(bench.places(&about_nobody), ["streams.s.subjects_of"]);
    // One that is there and did not compile has said so itself.
    let broken = format!("streams: {{ s: {{ issuer: broken, audiences: [us], {push} }} }}");
    assert_eq!(bench.places(&broken), Vec::<String>::new());
}
