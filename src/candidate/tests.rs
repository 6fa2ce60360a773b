//! Sides, contests and comparisons, without a network.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::cohort::Side;
use super::*;
use crate::authn::Identity;
use crate::authz::{KnownBundles, Machines, PolicyConfig, RouteFacts};
use crate::clock;
use crate::document::{self, from_json};
use crate::metrics::Metrics;
use crate::request::ConnInfo;
use crate::schema::Share;

const LATER: Duration = Duration::from_secs(3600);

pub(super) fn caller(subject: &str, claims: &str) -> Caller {
    let claims = from_json(claims.as_bytes()).unwrap();
    Caller::Known(Identity::for_tests(subject, claims, clock::now() + LATER))
}

pub(super) fn request_from(address: &str) -> InboundRequest {
    request_to(address, "/orders/1")
}

fn request_to(address: &str, path: &str) -> InboundRequest {
    let peer: SocketAddr = address.parse().unwrap();
    let conn = Arc::new(ConnInfo {
        listener: "test".into(),
        peer,
        local: peer,
        tls: None,
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let request = http::Request::get(path).header("host", "api.example.test");
    let request = request.body(()).unwrap();
    let id = RequestId::random();
    let parsed = InboundRequest::parse(&conn, id, request, clock::now(), &Rules::default());
    parsed.unwrap().0
}

fn side(name: &str, share: u32, by: By, cohort: CohortConfig) -> Side {
    Side::new(name, Share::percent(share), by, (1, 2), cohort)
}

/// Who of a thousand subjects is on a candidate's side.
fn drawn(side: &Side) -> BTreeSet<usize> {
    let request = request_from("192.0.2.1:1");
    let is_in = |n: &usize| side.has(&request, "r", &caller(&format!("user{n}"), "{}"));
    (0..1_000).filter(is_in).collect()
}

#[test]
fn a_share_is_about_its_size_and_whoever_is_in_a_smaller_one_is_in_a_larger_one() {
    let all = CohortConfig::default;
    let five = drawn(&side("next", 5, By::Subject, all()));
    let twenty = drawn(&side("next", 20, By::Subject, all()));
    assert!((25..85).contains(&five.len()), "{}", five.len());
    assert!((150..250).contains(&twenty.len()), "{}", twenty.len());
    assert!(five.is_subset(&twenty));
    assert_eq!(five, drawn(&side("next", 5, By::Subject, all())), "stable");
    assert_eq!(drawn(&side("next", 100, By::Subject, all())).len(), 1_000);
    assert_eq!(drawn(&side("next", 0, By::Subject, all())).len(), 0);
}

#[test]
fn another_candidate_and_another_key_draw_others() {
    let all = CohortConfig::default;
    let twenty = drawn(&side("next", 20, By::Subject, all()));
    let other = drawn(&side("other", 20, By::Subject, all()));
    let share = Share::percent(20);
    let key = drawn(&Side::new("next", share, By::Subject, (1, 3), all()));
    for drawn in [other, key] {
        let both = drawn.intersection(&twenty).count();
        assert!(both < 80, "{both} of 200 are the same");
    }
}

#[test]
fn who_belongs_together_is_on_one_side_and_nobody_leaves_it_by_another_address_of_theirs() {
    let same = |by, requests: &[InboundRequest], callers: &[Caller]| {
        (0..64).all(|name| {
            let side = side(&format!("c{name}"), 50, by, CohortConfig::default());
            let mut sides = BTreeSet::new();
            for request in requests {
                sides.extend(callers.iter().map(|caller| side.has(request, "r", caller)));
            }
            sides.len() == 1
        })
    };
    let here = request_from("192.0.2.1:1");
    let there = request_from("198.51.100.9:2");
    let alice = || caller("alice", r#"{"client_id": "shop"}"#);
    let bob = || caller("bob", r#"{"client_id": "shop"}"#);
    let nobody = || Caller::Anonymous;
    assert!(same(By::Subject, &[here, there], &[alice()]));
    let here = || request_from("192.0.2.1:1");
    let there = || request_from("198.51.100.9:2");
    assert!(!same(By::Subject, &[here()], &[alice(), bob()]));
    assert!(same(By::Client, &[here(), there()], &[alice(), bob()]));
    assert!(same(
        By::Address,
        &[here(), request_from("192.0.2.1:77")],
        &[alice(), bob(), nobody()]
    ));
    assert!(!same(By::Address, &[here(), there()], &[alice()]));
    // Who has nothing else counts by the address, and a whole /64 is one.
    assert!(same(
        By::Subject,
        &[
            request_from("[2001:db8::1]:1"),
            request_from("[2001:db8::ffff:2]:1")
        ],
        &[nobody()]
    ));
    assert!(!same(
        By::Subject,
        &[
            request_from("[2001:db8::1]:1"),
            request_from("[2001:db8:0:1::1]:1")
        ],
        &[nobody()]
    ));
    assert!(
        same(
            By::Address,
            &[here(), request_from("[::ffff:192.0.2.1]:9")],
            &[nobody()]
        ),
        "IPv4 is IPv4"
    );
}

#[test]
fn a_cohort_needs_something_of_each_list() {
    let cohort = |json: &str| -> CohortConfig { serde_json::from_str(json).unwrap() };
    let request = request_from("10.1.2.3:1");
    let has = |json: &str, caller: &Caller| {
        side("next", 100, By::Subject, cohort(json)).has(&request, "orders", caller)
    };
    let alice = caller(
        "alice",
        r#"{"tier": ["gold", "beta"], "n": 7, "org": {"id": "acme"}, "on": true, "null": null}"#,
    );
    for yes in [
        r#"{"claims": {"tier": ["beta", "other"]}}"#,
        r#"{"claims": {"n": ["7"], "on": ["true"], "org.id": ["acme"]}}"#,
        r#"{"subjects": ["bob", "alice"]}"#,
        r#"{"subjects": ["https://issuer.test|alice"]}"#,
        r#"{"routes": ["orders"], "addresses": ["10.0.0.0/8"], "claims": {"tier": ["gold"]}}"#,
    ] {
        assert!(has(yes, &alice), "{yes}");
    }
    for no in [
        r#"{"claims": {"tier": ["bet"]}}"#,
        r#"{"claims": {"tier": ["beta"], "n": ["8"]}}"#,
        r#"{"claims": {"org": ["acme"]}}"#,
        r#"{"claims": {"null": ["null"]}}"#,
        r#"{"claims": {"absent": [""]}}"#,
        r#"{"subjects": ["Alice"]}"#,
        r#"{"routes": ["order"]}"#,
        r#"{"routes": ["orders"], "addresses": ["10.2.0.0/16"]}"#,
    ] {
        assert!(!has(no, &alice), "{no}");
    }
    for named in [
        r#"{"subjects": ["alice"]}"#,
        r#"{"claims": {"tier": ["beta"]}}"#,
    ] {
        assert!(!has(named, &Caller::Anonymous), "{named}");
    }
}

/// A policy and its candidates, compiled from texts.
struct Stage {
    _folder: TempDir,
    candidates: Candidates,
    policy: Arc<Policy>,
    routes: (Arc<str>, document::Value),
}

impl Stage {
    fn new(policy: &str, candidates: &[(&str, &str, &str)]) -> Rc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut cx = Compile::new(
            &folder.path().join("gateway.yaml"),
            Arc::new(Metrics::default()),
        );
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(format!("{name}.rego")), text).unwrap();
        };
        write("now", policy);
        let block: PolicyConfig =
            serde_json::from_str(r#"{"files": ["now.rego"], "entrypoint": "data.p.allow"}"#)
                .unwrap();
        let now = block.clone().compile("now", None, &mut cx).unwrap();
        let policies = Named::from([("now".to_owned(), now)]);
        let blocks = Named::from([("now".to_owned(), block)]);
        let names = BTreeSet::from(["now".to_owned()]);
        let book = Book::open(None, None, &mut cx);
        let bundles = KnownBundles {
            compiled: &Named::new(),
            names: &BTreeSet::new(),
            mandatory: false,
        };
        let routes = BTreeMap::from([("orders".to_owned(), "now".to_owned())]);
        let ground = Ground {
            blocks: &blocks,
            policies: &policies,
            names: &names,
            routes: &routes,
            bundles: &bundles,
            previous: None,
            book: &book,
        };
        let mut named = Named::new();
        for (name, text, rest) in candidates {
            write(name, text);
            let block = format!(r#"{{"of": "now", "files": ["{name}.rego"]{rest}}}"#);
            let block: CandidateConfig = serde_json::from_str(&block).unwrap();
            let candidate = block.compile(name, &ground, &mut cx);
            let candidate = candidate.unwrap_or_else(|| panic!("{:?}", cx.problems()));
            named.insert((*name).to_owned(), candidate);
        }
        let policy = Arc::clone(&policies["now"]);
        let candidates =
            Candidates::new(named, &policies, Rules::default(), Share::percent(50), book);
        Rc::new(Self {
            _folder: folder,
            candidates,
            policy,
            routes: ("orders".into(), document::object::<&str>([])),
        })
    }

    fn told(&self, name: &str) -> Value {
        self.candidates.named[name].told(true)
    }
}

fn judged_by(
    stage: &Rc<Stage>,
    _: &InboundRequest,
    then: &mut dyn FnMut(&Candidates, &Arc<Policy>, &RouteFacts<'_>),
) {
    let facts = RouteFacts {
        name: &stage.routes.0,
        params: &[("id".into(), "1".to_owned())],
        labels: &stage.routes.1,
    };
    then(&stage.candidates, &stage.policy, &facts);
}

/// One request of one caller, decided by the policy or by whoever is to decide.
fn go(
    stage: &Rc<Stage>,
    shadow: &Rc<Shadow<Rc<Stage>>>,
    machines: &Machines,
    subject: &str,
) -> bool {
    let request = request_from("192.0.2.1:1");
    let caller = caller(subject, "{}");
    let contest = stage.candidates.contest(&stage.policy).unwrap();
    let by = contest.by(&request, "orders", &caller);
    let place = by.map(|(place, _)| place);
    let policy: &Policy = by.map_or(contest.policy(), |(_, one)| &one.policy);
    let mut allowed = None;
    judged_by(stage, &request, &mut |_, _, facts| {
        allowed = Some(policy.say(machines, &request, facts, &caller));
    });
    let said = allowed.unwrap();
    let allows = said.allows();
    if shadow.wants(&stage.candidates, contest, &request.id, place) {
        let seen = Seen {
            caller,
            said,
            by: place,
        };
        drop(shadow.see(
            Rc::clone(stage),
            Rc::new(request),
            RequestId::random(),
            seen,
        ));
    }
    allows
}

const YES: &str = "package p\n\nallow if input.route.name == \"orders\"\n";
const NO: &str = "package p\n\nallow := {\"allow\": false, \"reason\": \"p.no\"}\n";

#[test]
fn nothing_is_asked_before_the_answer_is_made() {
    let stage = Stage::new(YES, &[("no", NO, "")]);
    let (shadow, machines) = (Rc::new(Shadow::new(judged_by)), Machines::default());
    let request = Rc::new(request_from("192.0.2.1:1"));
    let contest = stage.candidates.contest(&stage.policy).unwrap();
    assert!(shadow.wants(&stage.candidates, contest, &request.id, None));
    let mut said = None;
    judged_by(&stage, &request, &mut |_, policy, facts| {
        said = Some(policy.say(&machines, &request, facts, &Caller::Anonymous));
    });
    let seen = Seen {
        caller: Caller::Anonymous,
        said: said.unwrap(),
        by: None,
    };
    let sighting = shadow.see(Rc::clone(&stage), request, RequestId::random(), seen);
    while shadow.visit(&machines) {}
    assert_eq!(stage.told("no")["compared"], 0);
    drop(sighting);
    while shadow.visit(&machines) {}
    let told = stage.told("no");
    assert_eq!((&told["compared"], &told["denies"]), (&json!(1), &json!(1)));
    assert_eq!(told["samples"][0]["path"], "/orders/{id}");
    assert_eq!(told["samples"][0]["caller"], "anonymous from 192.0.2.1");
}

#[test]
fn the_first_candidate_by_name_decides_and_all_are_compared_with_the_policy() {
    let enforce = r#", "enforce": {"cohort": {"subjects": ["alice"]}}"#;
    let stage = Stage::new(
        YES,
        &[("b", YES, enforce), ("a", NO, enforce), ("c", NO, "")],
    );
    let (shadow, machines) = (Rc::new(Shadow::new(judged_by)), Machines::default());
    assert!(!go(&stage, &shadow, &machines, "alice"), "a decides");
    assert!(go(&stage, &shadow, &machines, "bob"), "the policy decides");
    while shadow.visit(&machines) {}
    for (name, denies, judged) in [("a", 2, 1), ("b", 0, 0), ("c", 2, 0)] {
        let told = stage.told(name);
        assert_eq!(
            (&told["compared"], &told["denies"]),
            (&json!(2), &json!(denies)),
            "{name}"
        );
        let now = told["judged"]["now"]["compared"].as_u64().unwrap_or(0);
        assert_eq!(now, 0, "{name}: nobody has looked yet");
        assert_eq!(
            stage.candidates.named[name].state.report().judged.compared,
            judged,
            "{name}"
        );
    }
}

#[test]
fn what_waits_is_bounded_and_the_rest_is_counted() {
    let enforce = r#", "enforce": {"cohort": {"subjects": ["alice"]}}"#;
    let failing = "package p\n\nallow if input.route.name == \"other\"\n";
    let stage = Stage::new(YES, &[("fails", failing, enforce)]);
    let (shadow, machines) = (Rc::new(Shadow::new(judged_by)), Machines::default());
    for _ in 0..1_100 {
        assert!(!go(&stage, &shadow, &machines, "alice"));
    }
    while shadow.visit(&machines) {}
    let told = stage.told("fails");
    assert_eq!(told["left_out_by"]["queue"], 76);
    assert_eq!(
        told["compared"], 1_024,
        "those that fail are compared at any rate"
    );
    // A failure of which nobody can be asked counts as its own.
    let judged = stage.candidates.named["fails"].state.report().judged;
    assert_eq!((judged.decided, judged.errors), (1_100, 1_100));
}

#[test]
fn a_candidate_takes_its_share_of_the_time_and_no_more() {
    let slow = "package p\n\nallow if count([1 | some a in numbers.range(1, 500); a == count(input.identity.subject)]) > 0\n";
    let rest = r#", "decision_cache": false, "budget": {"time": "1s", "instructions": 1000000}"#;
    let stage = Stage::new(YES, &[("slow", slow, rest)]);
    let (shadow, machines) = (Rc::new(Shadow::new(judged_by)), Machines::default());
    for _ in 0..600 {
        assert!(go(&stage, &shadow, &machines, "alice"));
        shadow.visit(&machines);
    }
    while shadow.visit(&machines) {}
    let told = stage.told("slow");
    let (compared, left) = (
        told["compared"].as_u64().unwrap(),
        told["left_out"].as_u64().unwrap(),
    );
    assert_eq!(compared + left, 600);
    assert!(
        left > 0 && compared > 0,
        "{compared} compared, {left} left out"
    );
}

#[test]
fn what_went_back_is_the_same_text_only() {
    let enforce = r#", "enforce": {"cohort": {"subjects": ["alice"]}}"#;
    let stage = Stage::new(YES, &[("next", NO, enforce)]);
    let candidate = &stage.candidates.named["next"];
    let mut cx = Compile::new(
        std::path::Path::new("gateway.yaml"),
        Arc::new(Metrics::default()),
    );
    let book = Book::open(None, None, &mut cx);
    let back = Back {
        text: candidate.policy.text().to_owned(),
        since: 1,
        edge: "denials".to_owned(),
        why: "it denied".to_owned(),
    };
    book.put("next", back.clone());
    let carried = |policy: &Policy, previous| {
        State::carried("next", policy, &stage.policy, previous, &book, &cx)
    };
    assert!(carried(&candidate.policy, None).is_back());
    assert!(!carried(&stage.policy, None).is_back(), "another text");
    // What is running knows better than the book.
    assert!(!carried(&candidate.policy, Some(&candidate.state)).is_back());
    assert_eq!(carried(&candidate.policy, None).back(), Some(back));
    assert!(SystemTime::UNIX_EPOCH < clock::now());
}

#[test]
fn whoever_looks_at_bodies_takes_none_that_nobody_read_for_a_harmless_one() {
    let careless = "package p\n\nallow if not input.request.body.dangerous\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.rego"), careless).unwrap();
    let mut cx = Compile::new(
        &folder.path().join("gateway.yaml"),
        Arc::new(Metrics::default()),
    );
    let block = r#"{"files": ["p.rego"], "entrypoint": "data.p.allow", "body": {"max": "1KiB"}}"#;
    let block: PolicyConfig = serde_json::from_str(block).unwrap();
    let policy = block.compile("p", None, &mut cx).unwrap();
    let facts = RouteFacts {
        name: &"orders".into(),
        params: &[],
        labels: &document::object::<&str>([]),
    };
    let request = request_from("192.0.2.1:1");
    let said = policy.say(&Machines::default(), &request, &facts, &Caller::Anonymous);
    assert_eq!(said.failure(), Some("body"));
}

#[test]
fn nobody_who_looks_at_the_numbers_holds_up_a_worker() {
    let stage = Stage::new(YES, &[("no", NO, "")]);
    let (shadow, machines) = (Rc::new(Shadow::new(judged_by)), Machines::default());
    assert!(go(&stage, &shadow, &machines, "alice"));
    let looking = stage.candidates.named["no"].state.report();
    while shadow.visit(&machines) {}
    drop(looking);
    assert_eq!(stage.told("no")["compared"], 0);
    while shadow.visit(&machines) {}
    assert_eq!(stage.told("no")["compared"], 1, "told the next time");
}

#[tokio::test]
async fn what_goes_back_while_another_configuration_is_compiled_is_back_in_that_too() {
    let enforce = r#", "enforce": {"cohort": {"subjects": ["alice"]}}"#;
    let stage = Stage::new(YES, &[("next", NO, enforce)]);
    let (metrics, control) = (Metrics::default(), Handle::current());
    stage.candidates.activate(&control, &metrics);
    let old = &stage.candidates.named["next"];
    // The policy has another text now, so that the candidate's numbers begin anew.
    let cx = Compile::new(
        std::path::Path::new("gateway.yaml"),
        Arc::new(Metrics::default()),
    );
    let book = &stage.candidates.book;
    let state = State::carried(
        "next",
        &old.policy,
        &old.policy,
        Some(&old.state),
        book,
        &cx,
    );
    assert!(!Arc::ptr_eq(&state, &old.state) && !state.is_back());
    assert!(old.send_back(), "meanwhile");
    let policies = Named::from([("now".to_owned(), Arc::clone(&stage.policy))]);
    let next = Arc::new(Candidate {
        name: Arc::clone(&old.name),
        policy: Arc::clone(&old.policy),
        config: old.config.clone(),
        side: old.side.as_ref().map(Side::again),
        band: old.band.clone(),
        epoch: Arc::clone(&old.epoch),
        state,
    });
    let named = Named::from([("next".to_owned(), Arc::clone(&next))]);
    let after = Candidates::new(
        named,
        &policies,
        Rules::default(),
        Share::percent(8),
        Arc::clone(book),
    );
    after.activate(&control, &metrics);
    assert!(next.is_back());
    assert_eq!(next.back().unwrap().edge, "order");
    // The one before has no say any more, and what is resumed is so for the one in force.
    assert!(after.resume(&next));
    assert!(!old.send_back());
    assert!(book.entry("next", next.policy.text(), 0).is_none());
}
