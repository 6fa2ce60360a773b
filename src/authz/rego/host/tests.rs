//! The table, and each function on what it is for and on what it must not do.

use super::*;

#[test]
fn the_table_is_in_order_and_says_what_the_engine_says() {
    assert!(HOSTS.windows(2).all(|pair| pair[0].name < pair[1].name));
    for host in HOSTS {
        assert!(find(host.name).is_some(), "{}", host.name);
        if let Some((_, arity)) = BUILTINS.get(host.name) {
            assert_eq!(*arity, host.arity, "{}", host.name);
        }
    }
}

fn ask(name: &str, args: &str) -> Answer {
    let args = Value::from_json_str(args).unwrap();
    let args = args.as_array().unwrap().to_vec();
    (find(name).unwrap().call)(&args)
}

fn answers(name: &str, args: &str, answer: &str) {
    let wanted = Value::from_json_str(answer).unwrap();
    let found = match ask(name, args) {
        Ok(Value::Set(items)) => Value::from(items.iter_sorted().cloned().collect::<Vec<_>>()),
        Ok(found) => found,
        Err(failed) => panic!("{name}({args}): {failed:?}"),
    };
    assert_eq!(found, wanted, "{name}({args})");
}

fn spends(name: &str, args: &str) {
    assert!(
        matches!(ask(name, args), Err(Failed::Spent(_))),
        "{name} has no bound"
    );
}

fn fails(name: &str, args: &str) {
    assert!(
        matches!(ask(name, args), Err(Failed::Error(_))),
        "{name}({args})"
    );
}

#[test]
fn what_would_hold_a_worker_is_spent_before_it_begins() {
    let long = "x".repeat(MAX_SUBJECT + 1);
    let pattern = "x".repeat(MAX_PATTERN + 1);
    spends("numbers.range", "[0, 10000]");
    spends(
        "numbers.range",
        "[-9223372036854775808, 9223372036854775807]",
    );
    spends("numbers.range_step", "[0, 100000, 9]");
    spends("net.cidr_expand", "[\"10.0.0.0/8\"]");
    spends("net.cidr_expand", "[\"::/0\"]");
    spends("bits.lsh", "[1, 1025]");
    spends("sprintf", "[\"%999999999d\", [1]]");
    spends("sprintf", "[\"%.999d\", [1]]");
    spends("replace", &format!("[\"{long}\", \"x\", \"{pattern}\"]"));
    spends("replace", &format!("[\"{long}\", \"\", \"{pattern}\"]"));
    spends(
        "concat",
        &format!("[\"{long}\", {}]", serde_json::json!(vec!["x"; 20])),
    );
    spends("regex.match", &format!("[\"{pattern}\", \"x\"]"));
    spends("regex.match", &format!("[\"x\", \"{long}\"]"));
    spends(
        "regex.replace",
        &format!("[\"{}\", \"\", \"{pattern}\"]", "x".repeat(2000)),
    );
    spends("glob.match", &format!("[\"{pattern}\", [], \"x\"]"));
    spends("regex.globs_match", &format!("[\"{pattern}\", \"x\"]"));
    spends(
        "split",
        &format!("[\"{}\", \"\"]", "x".repeat(MAX_ELEMENTS + 1)),
    );
    let patterns: std::collections::BTreeMap<String, &str> =
        (0..1000).map(|n| (n.to_string(), "")).collect();
    spends(
        "strings.replace_n",
        &format!("[{}, \"{long}\"]", serde_json::json!(patterns)),
    );
    spends("io.jwt.decode", &format!("[\"{long}\"]"));
    spends(
        "json.unmarshal",
        &format!("[\"{}\"]", "x".repeat(MAX_TEXT + 1)),
    );
    fails("to_number", "[\"1e999999999\"]");
    fails("units.parse", "[\"1e999999999\"]");
    fails("units.parse_bytes", "[\"1e999999999\"]");
}

#[test]
fn a_value_that_is_one_part_many_times_over_is_not_written_out() {
    let mut value = Value::from("x");
    for _ in 0..60 {
        value = Value::from(vec![value.clone(), value]);
    }
    for (name, args) in [
        ("json.marshal", vec![value.clone()]),
        ("sprintf", vec![Value::from("%v"), Value::from(vec![value])]),
    ] {
        let answer = (find(name).unwrap().call)(&args);
        assert!(matches!(answer, Err(Failed::Spent(_))), "{name}");
    }
}

#[test]
fn a_bound_that_was_passed_is_told_whatever_became_of_the_failure() {
    begin(Moment::default());
    assert_eq!(spent(), None);
    let args = [Value::from(0u64), Value::from(1_000_000u64)];
    let host = find("numbers.range").unwrap();
    assert!(answer(host.call, &args).is_err());
    assert!(spent().is_some());
    assert_eq!(spent(), None);
}

#[test]
fn texts_are_treated_as_opa_treats_them() {
    answers("strings.count", "[\"aaaa\", \"aa\"]", "2");
    answers("strings.count", "[\"abc\", \"\"]", "4");
    answers(
        "strings.replace_n",
        "[{\"a\": \"b\", \"b\": \"a\"}, \"ab\"]",
        "\"ba\"",
    );
    answers("split", "[\"abc\", \"\"]", "[\"a\", \"b\", \"c\"]");
    answers("concat", "[\",\", [\"a\", \"b\"]]", "\"a,b\"");
    answers(
        "sprintf",
        "[\"%v %s\", [{\"a\": [\"x\"]}, \"y\"]]",
        "\"{\\\"a\\\": [\\\"x\\\"]} y\"",
    );
    answers("array.flatten", "[[1, [2, [3]], []]]", "[1, 2, [3]]");
    answers("regex.globs_match", "[\"a.*b\", \"a[b-c]+b\"]", "true");
    answers("regex.globs_match", "[\"a.\", \"b.\"]", "false");
    answers("json.is_valid", "[7]", "false");
}

#[test]
fn networks_are_compared_and_joined() {
    answers(
        "net.cidr_contains_matches",
        "[[\"10.0.0.0/8\"], [\"10.1.1.1\", \"11.0.0.0/9\"]]",
        "[[0, 0]]",
    );
    answers(
        "net.cidr_contains_matches",
        "[\"10.0.0.0/8\", {\"k\": [\"10.1.1.1\", 1]}]",
        "[[\"10.0.0.0/8\", \"k\"]]",
    );
    answers(
        "net.cidr_merge",
        "[[\"10.0.0.0/9\", \"10.128.0.0/9\"]]",
        "[\"10.0.0.0/8\"]",
    );
    answers(
        "net.cidr_intersects",
        "[\"10.0.0.0/8\", \"10.1.0.0/16\"]",
        "true",
    );
    fails("net.cidr_contains_matches", "[\"x\", \"10.0.0.1\"]");
    fails("net.cidr_contains_matches", "[\"10.0.0.0/8\", [\"x\"]]");
    // Beside nothing no text is read, as in OPA.
    answers("net.cidr_contains_matches", "[[\"x\"], []]", "[]");
    answers("net.cidr_contains_matches", "[{}, \"x\"]", "[]");
}

#[test]
fn hashes_are_those_of_the_books() {
    answers(
        "crypto.md5",
        "[\"abc\"]",
        "\"900150983cd24fb0d6963f7d28e17f72\"",
    );
    answers(
        "crypto.sha1",
        "[\"abc\"]",
        "\"a9993e364706816aba3e25717850c26c9cd0d89d\"",
    );
    // RFC 2202 section 2, test case 2.
    answers(
        "crypto.hmac.md5",
        "[\"what do ya want for nothing?\", \"Jefe\"]",
        "\"750c783e6ab0b503eaa86e310a5db738\"",
    );
    answers("crypto.hmac.equal", "[\"a\", \"b\"]", "false");
}

/// HS256 under `secret`.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VyIjoiYWxpY2UiLCJhenAiOiJhbGljZSIsInN1Ym9yZGluYXRlcyI6W10sImhyIjpmYWxzZX0.rz3jTY033z-NrKfwrK89_dcLF7TN4gwCMj-fVBDyLoM";

#[test]
fn tokens_are_decoded_and_verified() {
    answers(
        "io.jwt.verify_hs256",
        &format!("[\"{TOKEN}\", \"secret\"]"),
        "true",
    );
    answers(
        "io.jwt.verify_hs256",
        &format!("[\"{TOKEN}\", \"public\"]"),
        "false",
    );
    answers(
        "io.jwt.verify_hs384",
        &format!("[\"{TOKEN}\", \"secret\"]"),
        "false",
    );
    let header = "{\"alg\": \"HS256\", \"typ\": \"JWT\"}";
    let payload = "{\"user\": \"alice\", \"azp\": \"alice\", \"subordinates\": [], \"hr\": false}";
    answers(
        "io.jwt.decode_verify",
        &format!("[\"{TOKEN}\", {{\"secret\": \"secret\", \"alg\": \"HS256\"}}]"),
        &format!("[true, {header}, {payload}]"),
    );
    for wrong in ["\"alg\": \"HS512\"", "\"iss\": \"x\"", "\"aud\": \"x\""] {
        answers(
            "io.jwt.decode_verify",
            &format!("[\"{TOKEN}\", {{\"secret\": \"secret\", {wrong}}}]"),
            "[false, {}, {}]",
        );
    }
    for wrong in [
        "{}",
        "{\"secret\": \"a\", \"cert\": \"b\"}",
        "{\"secret\": \"a\", \"x\": \"b\"}",
    ] {
        fails("io.jwt.decode_verify", &format!("[\"{TOKEN}\", {wrong}]"));
    }
    fails("io.jwt.decode", "[\"a.b\"]");
    fails("io.jwt.verify_rs256", &format!("[\"{TOKEN}\", \"secret\"]"));
    // RFC 8725 section 2.1: no algorithm is none that verifies.
    answers(
        "io.jwt.decode_verify",
        "[\"eyJhbGciOiJub25lIn0.e30.\", {\"secret\": \"secret\"}]",
        "[false, {}, {}]",
    );
}

#[test]
fn what_is_random_belongs_to_the_request() {
    let moment = |byte| Moment {
        now_ns: 7,
        request_id: [byte; 32],
    };
    begin(moment(b'a'));
    let first = (
        ask("uuid.rfc4122", "[\"k\"]"),
        ask("rand.intn", "[\"k\", 1000000]"),
    );
    assert_eq!(ask("time.now_ns", "[]"), Ok(Value::from(7u64)));
    assert_eq!(
        first,
        (
            ask("uuid.rfc4122", "[\"k\"]"),
            ask("rand.intn", "[\"k\", 1000000]")
        )
    );
    assert_ne!(first.0, ask("uuid.rfc4122", "[\"l\"]"));
    begin(moment(b'b'));
    assert_ne!(first.0, ask("uuid.rfc4122", "[\"k\"]"));
    let text = first.0.unwrap();
    let text = text.as_string().unwrap();
    assert!(uuid_like(text), "{text}");
}

fn uuid_like(text: &str) -> bool {
    text.len() == 36 && text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19])
}
