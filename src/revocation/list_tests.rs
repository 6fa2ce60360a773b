//! A list is believed when it is signed, ours, and not older than what was seen.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::authn::testing::{Signer, jwks};
use crate::clock::unix_seconds;
use crate::revocation::{RevocationConfig, Target};

const ISSUER: &str = "https://lists.test";

struct World {
    folder: TempDir,
    signer: Signer,
    plane: Arc<Plane>,
}

fn now() -> u64 {
    unix_seconds(clock::now())
}

fn token(id: &str) -> Value {
    json!({"kind": "token", "issuer": "https://issuer.test", "token_id": id})
}

impl World {
    fn new() -> Self {
        let signer = Signer::new("ES256", "l1");
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("keys.json"), jwks(&[&signer])).unwrap();
        let plane = Plane::new(&RevocationConfig::default(), Arc::default(), Arc::default());
        Self {
            folder,
            signer,
            plane: Arc::new(plane),
        }
    }

    fn config(&self) -> ListConfig {
        ListConfig {
            file: Some("list.jws".into()),
            url: None,
            issuer: ISSUER.into(),
            keys: "keys.json".into(),
            interval: interval(),
            stale_after: stale_after(),
            max_size: Size::kib(64),
            authorities: Vec::new(),
        }
    }

    fn compile(
        &self,
        config: ListConfig,
        previous: Option<&Arc<List>>,
    ) -> Result<Arc<List>, Vec<String>> {
        let file = self.folder.path().join("gateway.yaml");
        let mut cx = Compile::new(&file, Arc::default());
        let list = config.compile("partner", previous, &self.plane, 100, &mut cx);
        let problems = cx.finish().0;
        list.ok_or_else(|| {
            problems
                .into_iter()
                .map(|problem| problem.message)
                .collect()
        })
    }

    fn list(&self) -> Arc<List> {
        let list = self.compile(self.config(), None).unwrap();
        self.plane.hear_lists(vec![list.number]);
        list
    }

    fn edition(&self, iat: u64, entries: &[Value]) -> String {
        self.sealed(&json!({"iss": ISSUER, "iat": iat, "exp": iat + 3600, "revocations": entries}))
    }

    fn sealed(&self, payload: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": "l1", "typ": TYPE});
        self.signer.raw(&header.to_string(), &payload.to_string())
    }

    fn has(&self, id: &str) -> bool {
        let target = Target::Token {
            issuer: "https://issuer.test".into(),
            token_id: id.into(),
        };
        self.plane.get(target.key(), now()).is_some()
    }
}

fn take(list: &List, text: &str) -> Result<bool, &'static str> {
    list.take(text.as_bytes(), None, clock::now())
        .map_err(|error| error.code())
}

#[test]
fn an_edition_replaces_the_one_before_as_a_whole() {
    let world = World::new();
    let list = world.list();
    assert!(list.feed.is_stale(clock::now()));
    let first = world.edition(now() - 10, &[token("a"), token("b")]);
    assert_eq!(take(&list, &first), Ok(true));
    assert!(!list.feed.is_stale(clock::now()));
    assert!(world.has("a") && world.has("b"));
    assert_eq!(take(&list, &format!("{first}\n")), Ok(false), "the same");
    let second = world.edition(now() - 9, &[token("b"), token("c")]);
    assert_eq!(take(&list, &second), Ok(true));
    assert!(!world.has("a") && world.has("b") && world.has("c"));
    // An old edition brings nothing back and takes nothing away.
    assert_eq!(take(&list, &first), Err("rolled_back"));
    let forked = world.edition(now() - 9, &[token("d")]);
    assert_eq!(take(&list, &forked), Err("rolled_back"));
    assert!(world.has("c") && !world.has("d"));
}

#[test]
fn what_is_not_a_list_of_ours_changes_nothing() {
    let world = World::new();
    let list = world.list();
    let good = world.edition(now() - 10, &[token("a")]);
    assert_eq!(take(&list, &good), Ok(true));
    let at = now() - 5;
    let with = |changes: Value| {
        let mut payload =
            json!({"iss": ISSUER, "iat": at, "exp": at + 3600, "revocations": [token("b")]});
        for (name, value) in changes.as_object().unwrap() {
            payload[name] = value.clone();
            if value.is_null() {
                payload.as_object_mut().unwrap().remove(name);
            }
        }
        world.sealed(&payload)
    };
    let payload = json!({"iss": ISSUER, "iat": at, "exp": at + 3600, "revocations": [token("b")]});
    let header = |header: Value| world.signer.raw(&header.to_string(), &payload.to_string());
    let stranger = Signer::new("ES256", "l1");
    let strange = json!({"alg": "ES256", "kid": "l1", "typ": TYPE});
    let cut = &good[..good.len() - 4];
    for (text, code) in [
        (
            stranger.raw(&strange.to_string(), &payload.to_string()),
            "unsealed",
        ),
        (
            header(json!({"alg": "ES256", "kid": "l1", "typ": "at+jwt"})),
            "unsealed",
        ),
        (header(json!({"alg": "ES256", "kid": "l1"})), "unsealed"),
        (
            header(json!({"alg": "ES256", "kid": "l2", "typ": TYPE})),
            "unsealed",
        ),
        (
            header(json!({"alg": "none", "kid": "l1", "typ": TYPE})),
            "unsealed",
        ),
        (
            header(json!({"alg": "HS256", "kid": "l1", "typ": TYPE})),
            "unsealed",
        ),
        (cut.to_owned(), "unsealed"),
        ("[]".to_owned(), "unsealed"),
        (payload.to_string(), "unsealed"),
        (with(json!({"iss": "https://other.test"})), "issuer"),
        (with(json!({"iat": now() + LEEWAY + 10})), "future"),
        (with(json!({"exp": now() - 1})), "expired"),
        (with(json!({"exp": null})), "form"),
        (with(json!({"iat": null})), "form"),
        (with(json!({"revocations": null})), "form"),
        (with(json!({"revocations": [{"kind": "token"}]})), "form"),
        (with(json!({"revocation": []})), "form"),
        (
            with(json!({"revocations": vec![token("x"); 101]})),
            "too_many",
        ),
    ] {
        assert_eq!(take(&list, &text), Err(code), "{text}");
        assert!(world.has("a") && !world.has("b"), "{text}");
    }
    assert_eq!(take(&list, &with(json!({}))), Ok(true));
    assert!(world.has("b"));
}

#[test]
fn an_edition_that_has_ended_stays_in_force_and_counts_as_silence() {
    let world = World::new();
    let list = world.list();
    let payload =
        json!({"iss": ISSUER, "iat": now() - 10, "exp": now() + 60, "revocations": [token("a")]});
    let text = world.sealed(&payload);
    assert_eq!(take(&list, &text), Ok(true));
    let later = clock::now() + Duration::from_secs(61);
    assert!(list.feed.is_stale(later));
    assert_eq!(
        list.take(text.as_bytes(), None, later)
            .map_err(|e| e.code()),
        Err("expired")
    );
    assert!(world.has("a"));
}

#[test]
fn a_reload_goes_on_where_it_was_and_forgets_no_time() {
    let world = World::new();
    let list = world.list();
    let first = world.edition(now() - 10, &[token("a")]);
    assert_eq!(take(&list, &first), Ok(true));
    let same = world.compile(world.config(), Some(&list)).unwrap();
    assert!(Arc::ptr_eq(&same, &list));
    let config = ListConfig {
        stale_after: Span::seconds(60),
        ..world.config()
    };
    let other = world.compile(config, Some(&list)).unwrap();
    assert!(!Arc::ptr_eq(&other, &list));
    assert!(!other.feed.is_stale(clock::now()));
    world.plane.hear_lists(vec![other.number]);
    let older = world.edition(now() - 20, &[]);
    assert_eq!(take(&other, &older), Err("rolled_back"));
    // The edition in force is verified again, by the keys of now.
    assert_eq!(take(&other, &first), Ok(true));
    // What was fetched for the list before and ends only now replaces nothing.
    let late = world.edition(now() - 5, &[token("late")]);
    assert_eq!(take(&list, &late), Ok(false));
    assert!(world.has("a") && !world.has("late"));
    assert_eq!(
        take(&other, &late),
        Ok(true),
        "it is not known to have been seen"
    );
}

#[test]
fn a_file_is_read_before_anybody_is_served_within_its_bound() {
    let world = World::new();
    let list = world.list();
    list.begin();
    assert!(list.feed.status(clock::now()).last_error.is_some());
    let path = world.folder.path().join("list.jws");
    std::fs::write(&path, world.edition(now() - 10, &[token("a")])).unwrap();
    list.begin();
    assert!(world.has("a"));
    let many: Vec<Value> = (0..99).map(|n| token(&"x".repeat(900 + n))).collect();
    std::fs::write(&path, world.edition(now() - 9, &many)).unwrap();
    assert!(matches!(list.read(&path), Err(ListError::File(_))));
    assert!(world.has("a"));
}

#[test]
fn what_cannot_work_does_not_load() {
    let world = World::new();
    let wrong = |config: ListConfig| world.compile(config, None).unwrap_err();
    let both = ListConfig {
        url: Some("https://lists.test/a".into()),
        ..world.config()
    };
    assert!(wrong(both)[0].contains("exactly one place"));
    let plain = ListConfig {
        file: None,
        url: Some("http://lists.test/a".into()),
        ..world.config()
    };
    assert!(wrong(plain)[0].contains("not https"));
    let keys = ListConfig {
        keys: "nothing.json".into(),
        ..world.config()
    };
    assert!(wrong(keys)[0].contains("nothing.json"));
    let short = ListConfig {
        stale_after: Span::seconds(1),
        ..world.config()
    };
    assert!(wrong(short)[0].contains("shorter than `interval`"));
    std::fs::write(world.folder.path().join("keys.json"), "{}").unwrap();
    assert_eq!(wrong(world.config()).len(), 1);
}
