//! What a policy says of a document that was recorded. No [`Permit`](super::Permit) is made here.
//!
//! The document takes the place of a request, and what was not deterministic comes from the record:
//! the one clock reading, and the request's id, from which all that is random is made. Everything
//! else is what decides live: the same program, machine, budget and reading of answers. What the
//! policy's block hides from it, it does not see here either.

use std::sync::Arc;

use http::HeaderName;

use super::answer::{self, Verdict};
use super::envoy;
use super::published::InputDocument;
use super::rego::Outcome;
use super::rego::host;
use super::source::reads::Step;
use super::{Compiled, Machines, Policy, Reason, Rules, Sees};
use crate::ascii::canonical;
use crate::document::{self, Value};

/// How often a policy is asked that spends its budget: nobody waits here, and other work may be why.
pub const ATTEMPTS: u32 = 10;

/// What a policy says of a recorded document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Whether it lets the request through.
    pub allow: bool,
    /// The code of a no, as in the record; of a yes what the policy says, if it does.
    pub reason: Option<String>,
    /// What the entry point gave, in canonical JSON; `None` when it gave nothing.
    pub answer: Option<Arc<str>>,
    /// Why it gave nothing, or what is wrong with it.
    pub detail: Option<String>,
    /// How often it was asked: more than once when it spent its budget, at most [`ATTEMPTS`].
    pub attempts: u32,
}

/// Why a recorded document is not judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// An open route has no rules.
    #[error("the policy `public` has no rules")]
    Public,
    /// A bundle is missing.
    #[error("the bundle `{0}` is not there")]
    Unavailable(Arc<str>),
    /// It is no document.
    #[error("the recorded input cannot be read: {0}")]
    Unreadable(String),
    /// It is a document for other policies.
    #[error("the recorded input is {}, and the policy takes `input: {}`", shown(*.found), .wanted.name())]
    OtherKind {
        /// What it is, if that can be told.
        found: Option<InputDocument>,
        /// What the policy sees.
        wanted: InputDocument,
    },
}

fn shown(kind: Option<InputDocument>) -> &'static str {
    match kind {
        Some(InputDocument::Portcullis) => "our own document",
        Some(InputDocument::Envoy) => "a document of OPA's Envoy plugin",
        None => "no document that we know",
    }
}

/// What an answer means: whether it allows, and the reason it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// Whether it lets the request through.
    pub allow: bool,
    /// As in [`Judgement::reason`].
    pub reason: Option<String>,
    /// The answer, in canonical JSON.
    pub canonical: Arc<str>,
}

/// Which of the documents that policies see this is.
pub fn kind_of(input: &Value) -> Option<InputDocument> {
    let ours = document::member(input, "version") == Some(&Value::from(1_u64))
        && document::member(input, "request").is_some();
    if ours {
        return Some(InputDocument::Portcullis);
    }
    document::member(input, "attributes").map(|_| InputDocument::Envoy)
}

impl Policy {
    /// What the policy says of this document (JSON), as if a request with this clock reading
    /// (nanoseconds since 1970) and this id had it. It opens nothing and counts nowhere.
    ///
    /// # Errors
    /// [`Unjudged`], when there is nothing that could be asked.
    pub fn judge_recorded(
        &self,
        machines: &Machines,
        input: &str,
        received_at_ns: u64,
        request_id: &str,
    ) -> Result<Judgement, Unjudged> {
        let compiled = self.compiled()?;
        let mut input = document::from_json(input.as_bytes())
            .map_err(|error| Unjudged::Unreadable(error.to_string()))?;
        let wanted = compiled.document();
        let found = kind_of(&input);
        if found != Some(wanted) {
            return Err(Unjudged::OtherKind { found, wanted });
        }
        compiled.hide(&mut input);
        let moment = host::Moment {
            now_ns: received_at_ns,
            request_id: seed(request_id),
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            host::begin(moment);
            let policy = &self.decided_by.policy;
            let outcome = compiled.evaluate(policy, machines, input.clone());
            let judged = compiled.judged(outcome, attempts);
            let spent = judged.reason.as_deref() == Some(Reason::Budget.code());
            if !(spent && judged.answer.is_none()) || attempts >= ATTEMPTS {
                return Ok(judged);
            }
        }
    }

    /// What a recorded answer (JSON) of such a policy means.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn meaning(&self, answer: &str) -> Result<Meant, Unjudged> {
        let compiled = self.compiled()?;
        let value = document::from_json(answer.as_bytes())
            .map_err(|error| Unjudged::Unreadable(error.to_string()))?;
        let (allow, reason, _) = meant(compiled.verdict(&value));
        Ok(Meant {
            allow,
            reason,
            canonical: canonical(&value).into(),
        })
    }

    /// The document that it sees; `None` when it has no rules, or they are not there.
    pub fn document(&self) -> Option<InputDocument> {
        self.compiled().ok().map(Compiled::document)
    }

    /// The first of these JSON Pointers into a record (`/input/request/query/token/0`) that leads to
    /// something that a decision can depend on, or holds such a thing. Pointers to other parts than
    /// `/input` lead nowhere.
    pub fn reads_any<'p>(&self, pointers: impl IntoIterator<Item = &'p str>) -> Option<&'p str> {
        touched(&self.compiled().ok()?.reads, pointers)
    }

    fn compiled(&self) -> Result<&Compiled, Unjudged> {
        match &self.rules {
            Rules::Public => Err(Unjudged::Public),
            Rules::Absent(bundle) => Err(Unjudged::Unavailable(Arc::clone(bundle))),
            Rules::Rego(compiled) => Ok(compiled),
        }
    }
}

impl Compiled {
    fn document(&self) -> InputDocument {
        match self.sees {
            Sees::Portcullis(_) => InputDocument::Portcullis,
            Sees::Envoy(_) => InputDocument::Envoy,
        }
    }

    fn verdict(&self, value: &Value) -> Verdict {
        match self.sees {
            Sees::Portcullis(_) => answer::read(value),
            Sees::Envoy(_) => envoy::answer::read(value),
        }
    }

    fn judged(&self, outcome: Outcome, attempts: u32) -> Judgement {
        let fault = |reason: Reason, why: String| Judgement {
            allow: false,
            reason: Some(reason.code().to_owned()),
            answer: None,
            detail: Some(why),
            attempts,
        };
        match outcome {
            Outcome::Answer(value) => {
                let (allow, reason, detail) = meant(self.verdict(&value));
                let defined = value != Value::Undefined;
                Judgement {
                    allow,
                    reason,
                    answer: defined.then(|| canonical(&value).into()),
                    detail,
                    attempts,
                }
            }
            Outcome::Error(why) => fault(Reason::Error, why),
            Outcome::Budget(why) => fault(Reason::Budget, why),
            Outcome::Panic(why) => fault(Reason::Panic, why),
        }
    }

    /// Takes out what this policy is not shown, though another was.
    fn hide(&self, input: &mut Value) {
        let hidden = self.hidden_headers.iter().map(HeaderName::as_str);
        hide(input, self.document(), hidden, self.body.is_some());
    }
}

/// Takes out what a policy is not shown: headers that its block hides, and bodies that it does not
/// look at.
pub(super) fn hide<'h>(
    input: &mut Value,
    document: InputDocument,
    hidden: impl Iterator<Item = &'h str>,
    bodies: bool,
) {
    let headers: &[&str] = match document {
        InputDocument::Portcullis => &["request", "headers"],
        InputDocument::Envoy => &["attributes", "request", "http", "headers"],
    };
    for header in hidden {
        remove(input, headers, header);
    }
    if !bodies {
        for path in document.bodies() {
            if let Some((name, above)) = path.split_last() {
                remove(input, above, name);
            }
        }
    }
}

/// Whether it allows, with which reason, and what is wrong with it.
fn meant(verdict: Verdict) -> (bool, Option<String>, Option<String>) {
    let no = |reason: Reason| Some(reason.code().to_owned());
    match verdict {
        Verdict::Allow(advice) => (true, advice.reason, None),
        Verdict::Deny(face) => {
            let reason = face.reason.unwrap_or_else(|| "policy.denied".to_owned());
            (false, Some(reason), None)
        }
        Verdict::Undefined => (false, no(Reason::Undefined), None),
        Verdict::Broken(why) => (false, no(Reason::Answer), Some(why)),
    }
}

/// The id as it seeds what is random. Ids of others are of other lengths.
pub(super) fn seed(id: &str) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    for (digit, byte) in digits.iter_mut().zip(id.bytes()) {
        *digit = byte;
    }
    digits
}

fn remove(value: &mut Value, above: &[&str], name: &str) {
    let mut at = value;
    for step in above {
        let Ok(members) = at.as_object_mut() else {
            return;
        };
        let Some(below) = members.get_mut(&Value::from(*step)) else {
            return;
        };
        at = below;
    }
    if let Ok(members) = at.as_object_mut() {
        members.remove(&Value::from(name));
    }
}

/// The tokens of a pointer (RFC 6901) below `/input`.
fn below_input(pointer: &str) -> Option<Vec<String>> {
    let rest = pointer.strip_prefix("/input")?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let tokens = rest.strip_prefix('/')?.split('/');
    let plain = |token: &str| token.replace("~1", "/").replace("~0", "~");
    Some(tokens.map(plain).collect())
}

/// The first of these JSON Pointers into a record that leads to one of these paths of `input`, or
/// through it.
pub(super) fn touched<'p>(
    reads: &[Vec<Step>],
    pointers: impl IntoIterator<Item = &'p str>,
) -> Option<&'p str> {
    pointers.into_iter().find(|pointer| {
        below_input(pointer).is_some_and(|tokens| reads.iter().any(|path| overlap(path, &tokens)))
    })
}

/// Whether one of them leads to, or through, the other.
fn overlap(path: &[Step], tokens: &[String]) -> bool {
    path.iter().zip(tokens).all(|(step, token)| match step {
        Step::Name(name) => name == token,
        Step::Index(index) => token.parse() == Ok(*index),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use http::Request;
    use serde_json::json;

    use super::super::{Decision, PolicyConfig, RouteFacts, input};
    use super::*;
    use crate::authn::Caller;
    use crate::document::object;
    use crate::request::{ConnInfo, InboundRequest, RequestId, Rules as ReadingRules};
    use crate::schema::Compile;

    const NOW: u64 = 1_768_473_000_000_000_123;

    fn policy(rules: &str, more: serde_json::Value) -> Arc<Policy> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("policies")).unwrap();
        let text = format!("package p\n{rules}\n");
        fs::write(folder.path().join("policies/p.rego"), text).unwrap();
        let mut block = json!({"files": ["policies"], "entrypoint": "data.p.allow"});
        for (key, value) in more.as_object().unwrap() {
            block[key] = value.clone();
        }
        let config: PolicyConfig = serde_json::from_value(block).unwrap();
        let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::default());
        let policy = config.compile("p", None, &mut cx);
        policy.unwrap_or_else(|| panic!("{:?}", cx.finish().0))
    }

    fn request(uri: &str) -> InboundRequest {
        let conn = Arc::new(ConnInfo {
            listener: "public".into(),
            peer: "192.0.2.7:40000".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            tls: None,
            ambiguous_head: None,
            forwarded: Default::default(),
        });
        let request = Request::builder()
            .uri(uri)
            .header("host", "api.example.test")
            .header("x-number", "7")
            .header("x-legacy", "secret")
            .body(())
            .unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(NOW);
        let rules = ReadingRules::default();
        InboundRequest::parse(&conn, RequestId::random(), request, at, &rules)
            .unwrap()
            .0
    }

    /// What the policy decides live, and what it says of the whole document of the same request.
    fn both(policy: &Policy, uri: &str) -> ((bool, Option<String>), Judgement) {
        let request = request(uri);
        let labels = object([("team", Value::from("orders"))]);
        let route = RouteFacts {
            name: &"read-order".into(),
            params: &[("id".into(), "7".to_owned())],
            labels: &labels,
        };
        let whole = input::document(&request, &route, None, &[], &input::Wanted::all()).unwrap();
        let machines = Machines::default();
        let live = match policy.decide(&machines, &request, &route, Caller::Anonymous) {
            Decision::Allow(permit) => (true, permit.advice.reason.clone()),
            Decision::Deny(denial) => (false, Some(denial.reason.code().to_owned())),
        };
        let text = canonical(&whole);
        let judged = policy
            .judge_recorded(&machines, &text, NOW, request.id.as_str())
            .unwrap();
        (live, judged)
    }

    #[test]
    fn a_recorded_document_is_judged_as_its_request_was_decided() {
        for rules in [
            "default allow := false\nallow if input.request.query.part[0] == \"a\"",
            "allow := {\"allow\": input.route.params.id == \"7\", \"reason\": \"p.seven\"}",
            "allow if input.request.query.part[0] == \"a\"",
            "allow := \"yes\"",
            "allow if to_number(input.request.query.part[0]) > 3",
            "allow := {\"allow\": time.now_ns() == 1768473000000000123}",
            "allow := {\"allow\": rand.intn(\"x\", 1000) % 2 == 0, \"identity\": {\"n\": rand.intn(\"x\", 1000)}}",
            "allow := {\"allow\": true, \"headers\": {\"x-id\": uuid.rfc4122(\"k\")}}",
            "allow := {\"allow\": count(object.keys(input)) == 6}",
        ] {
            let policy = policy(rules, json!({}));
            for uri in ["/orders/7", "/orders/7?part=a", "/orders/7?part=9"] {
                let (live, judged) = both(&policy, uri);
                assert_eq!(live, (judged.allow, judged.reason.clone()), "{rules}");
                assert_eq!(judged.attempts, 1);
                // What is written of the answer means what the answer meant.
                if let Some(answer) = &judged.answer {
                    let meant = policy.meaning(answer).unwrap();
                    assert_eq!((meant.allow, meant.reason), live);
                    assert_eq!(meant.canonical, *answer);
                }
            }
        }
    }

    #[test]
    fn chance_is_as_it_was_for_the_same_id() {
        let policy = policy(
            "allow := {\"allow\": true, \"identity\": {\"n\": rand.intn(\"x\", 1000000), \"u\": uuid.rfc4122(\"k\")}}",
            json!({}),
        );
        let machines = Machines::default();
        let input = r#"{"version": 1, "request": {}}"#;
        let answer = |id: &str| {
            policy
                .judge_recorded(&machines, input, NOW, id)
                .unwrap()
                .answer
        };
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(answer(id), answer(id));
        assert_ne!(answer(id), answer("1123456789abcdef0123456789abcdef"));
    }

    #[test]
    fn a_spent_budget_is_tried_again_and_told() {
        let policy = policy(
            "allow if count([1 | some i in numbers.range(1, 9000); some j in numbers.range(1, 9000); i * j == 7]) == 2",
            json!({"budget": {"time": "1ms", "instructions": 1000}}),
        );
        let input = r#"{"version": 1, "request": {}}"#;
        let judged = policy
            .judge_recorded(&Machines::default(), input, NOW, "0")
            .unwrap();
        assert_eq!(judged.reason.as_deref(), Some("policy.budget"));
        assert_eq!((judged.allow, judged.attempts), (false, ATTEMPTS));
        assert!(judged.answer.is_none() && judged.detail.is_some());
    }

    #[test]
    fn another_kind_of_document_is_not_judged() {
        let ours = policy("allow := true", json!({}));
        let envoy = policy("allow := true", json!({"input": "envoy"}));
        let machines = Machines::default();
        let judge = |policy: &Policy, input| policy.judge_recorded(&machines, input, NOW, "0");
        let (a, b) = (
            r#"{"version": 1, "request": {}}"#,
            r#"{"attributes": {}, "version": {}}"#,
        );
        assert!(judge(&ours, a).unwrap().allow);
        assert!(judge(&envoy, b).unwrap().allow);
        for (policy, input) in [(&ours, b), (&envoy, a), (&ours, "{}"), (&ours, "[]")] {
            let unjudged = judge(policy, input).unwrap_err();
            assert!(matches!(unjudged, Unjudged::OtherKind { .. }), "{unjudged}");
        }
        let twice = r#"{"version": 1, "request": {"a": 1, "a": 2}}"#;
        for broken in ["", "{", twice] {
            let unjudged = judge(&ours, broken).unwrap_err();
            assert!(matches!(unjudged, Unjudged::Unreadable(_)), "{unjudged}");
        }
        let public = Policy::public();
        assert_eq!(judge(&public, a).unwrap_err(), Unjudged::Public);
    }

    #[test]
    fn what_the_block_hides_is_hidden_here_too() {
        let rules = "default allow := false\nallow if input.request.headers[\"x-legacy\"] == \"secret\"\nallow if walk(input, [_, \"body\"])";
        let (live, judged) = both(&policy(rules, json!({})), "/");
        assert!(live.0 && judged.allow);
        let hidden = policy(rules, json!({"hidden_headers": ["X-Legacy"]}));
        let (live, judged) = both(&hidden, "/");
        assert!(!live.0 && !judged.allow);
        // A body that another policy was shown.
        let input = r#"{"version": 1, "request": {"body": "body"}}"#;
        let judged = hidden
            .judge_recorded(&Machines::default(), input, NOW, "0")
            .unwrap();
        assert!(!judged.allow);
    }

    #[test]
    fn what_was_masked_is_known_to_be_read_or_not() {
        let policy = policy(
            "default allow := false\nallow if input.request.query.token[0] == \"x\"\nallow if input.request.headers[\"x/y~z\"] == \"1\"",
            json!({}),
        );
        for read in [
            "/input",
            "/input/request",
            "/input/request/query",
            "/input/request/query/token",
            "/input/request/query/token/0",
            "/input/request/query/token/0/deep",
            "/input/request/headers/x~1y~0z",
        ] {
            assert_eq!(policy.reads_any([read]), Some(read));
        }
        for unread in [
            "/query",
            "/inputs/request/query",
            "/input/request/query/other/0",
            "/input/request/query/token/1",
            "/input/identity/claims/email",
            "/answer",
        ] {
            assert_eq!(policy.reads_any([unread]), None, "{unread}");
        }
        let all = self::policy("allow if walk(input, [_, 1])", json!({}));
        assert!(all.reads_any(["/input/identity/claims/email"]).is_some());
    }
}
