use super::*;

fn bench(modules: &[(&str, &str)], watch: Watch) -> Result<Workbench, Vec<Problem>> {
    let modules = modules
        .iter()
        .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))
        .collect();
    Workbench::open(&Material::of(modules, &Value::new_object()).unwrap(), watch)
}

const OPTIONS: TestOptions = TestOptions {
    time: Duration::from_secs(5),
    explain: true,
};

const POLICY: &str = "package p\n\nimport rego.v1\n\ndefault allow := false\n\nallow if {\n\tinput.user == \"alice\"\n\tnot blocked\n}\n\nblocked if input.user in data.blocked\n\nreason := \"owner\" if {\n\tallow\n} else := \"nobody\"\n";

#[test]
fn tests_are_found_as_opa_finds_them() {
    let bench = bench(
        &[(
            "a_test.rego",
            "package a.b\n\ntest_one if true\n\ntodo_test_two if false\n\nx.test_three := true\n\ntest_f(x) := x\n\ntest_case[n] if {\n\tsome n in [1]\n}\n\nother if true\n",
        )],
        Watch::Nothing,
    )
    .unwrap();
    let names: Vec<_> = bench
        .tests()
        .iter()
        .map(|test| (test.full_name(), test.line, test.skip))
        .collect();
    assert_eq!(
        names,
        [
            ("data.a.b.test_one".to_owned(), 3, false),
            ("data.a.b.todo_test_two".to_owned(), 5, true),
            ("data.a.b.x.test_three".to_owned(), 7, false),
            ("data.a.b.test_case".to_owned(), 11, false),
        ]
    );
    for test in bench.tests() {
        let expected = if test.skip {
            Verdict::Skip
        } else {
            Verdict::Pass
        };
        assert_eq!(bench.run(test, OPTIONS).verdict, expected, "{test:?}");
    }
}

#[test]
fn only_true_passes() {
    let text = "package t\n\ntest_false := false\n\ntest_undefined if input.x\n\ntest_number := 1\n\ntest_text := \"true\"\n\ntest_object := {\"a\": true}\n\ntest_error if count(1) > 0\n\ntest_true := true\n";
    let bench = bench(&[("t_test.rego", text)], Watch::Nothing).unwrap();
    for test in bench.tests() {
        let verdict = bench.run(test, OPTIONS).verdict;
        match test.name.as_str() {
            "test_true" => assert_eq!(verdict, Verdict::Pass),
            "test_error" => assert!(matches!(verdict, Verdict::Error(_)), "{verdict:?}"),
            _ => assert_eq!(verdict, Verdict::Fail, "{}", test.name),
        }
    }
}

#[test]
fn tests_of_one_name_do_not_hide_one_another() {
    let text = "package t\n\ntest_a if true\n\ntest_a if 1 == 2\n\ntest_a if true\n";
    let bench = bench(&[("t_test.rego", text)], Watch::Nothing).unwrap();
    let found: Vec<_> = bench
        .tests()
        .iter()
        .map(|test| {
            (
                test.name.clone(),
                test.line,
                bench.run(test, OPTIONS).verdict,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("test_a".to_owned(), 3, Verdict::Pass),
            ("test_a#01".to_owned(), 5, Verdict::Fail),
            ("test_a#02".to_owned(), 7, Verdict::Pass),
        ]
    );
}

#[test]
fn each_case_of_a_test_has_its_result() {
    let text = "package t\n\ntest_sum[note] if {\n\tsome note, tc in {\n\t\t\"small\": {\"a\": 1, \"b\": 2, \"sum\": 3},\n\t\t\"wrong\": {\"a\": 1, \"b\": 2, \"sum\": 4},\n\t}\n\ttc.a + tc.b == tc.sum\n}\n\ntest_deep[tc.group][tc.name] if {\n\tsome tc in [\n\t\t{\"group\": \"g\", \"name\": \"x\", \"ok\": true},\n\t\t{\"group\": \"g\", \"name\": \"y\", \"ok\": false},\n\t]\n\ttc.ok\n}\n\ntest_good[n] if {\n\tsome n in [\"one\", \"two\"]\n}\n";
    let bench = bench(&[("t_test.rego", text)], Watch::Nothing).unwrap();
    let report = |name: &str| {
        let test = bench.tests().iter().find(|test| test.name == name).unwrap();
        bench.run(test, OPTIONS)
    };
    let sum = report("test_sum");
    assert_eq!(sum.verdict, Verdict::Fail);
    let fails: Vec<_> = sum
        .cases
        .iter()
        .map(|(n, c)| (n.as_str(), c.fail))
        .collect();
    assert_eq!(fails, [("small", false), ("wrong", true)]);
    let deep = report("test_deep");
    assert_eq!(deep.verdict, Verdict::Fail);
    let inner: Vec<_> = deep.cases["g"]
        .cases
        .iter()
        .map(|(n, c)| (n.as_str(), c.fail))
        .collect();
    assert_eq!(inner, [("x", false), ("y", true)]);
    assert!(deep.cases["g"].fail);
    let good = report("test_good");
    assert_eq!(good.verdict, Verdict::Pass);
    assert_eq!(good.cases.len(), 2);
}

#[test]
fn a_failed_test_names_its_statement_and_the_values_there() {
    let text = "package p_test\n\nimport data.p\n\ntest_alice if {\n\tuser := \"alice\"\n\tanswer := p.reason with input as {\"user\": user} with data.blocked as []\n\tanswer == \"admin\"\n}\n\ntest_not if not p.allow with input as {\"user\": \"alice\"} with data.blocked as []\n\ntest_undefined if {\n\tp.missing.thing == 1\n}\n";
    let bench = bench(&[("p.rego", POLICY), ("p_test.rego", text)], Watch::Nothing).unwrap();
    let failed = |name: &str| {
        let test = bench.tests().iter().find(|test| test.name == name).unwrap();
        let report = bench.run(test, OPTIONS);
        assert_eq!(report.verdict, Verdict::Fail);
        report.failed_at.unwrap()
    };
    let alice = failed("test_alice");
    assert_eq!((alice.line, alice.column), (8, 2));
    assert_eq!(alice.text, "answer == \"admin\"");
    assert_eq!(
        alice.values,
        [
            ("answer".to_owned(), "\"owner\"".to_owned()),
            ("user".to_owned(), "\"alice\"".to_owned()),
        ]
    );
    let not = failed("test_not");
    assert_eq!(not.values, [("p.allow".to_owned(), "true".to_owned())]);
    let undefined = failed("test_undefined");
    assert_eq!(
        undefined.values,
        [("p.missing.thing".to_owned(), "undefined".to_owned())]
    );
}

#[test]
fn prints_come_back_with_their_place() {
    let text = "package t\n\ntest_a if {\n\tprint(\"hello\", {\"a\": 1})\n}\n";
    let bench = bench(&[("t_test.rego", text)], Watch::Nothing).unwrap();
    let report = bench.run(&bench.tests()[0], OPTIONS);
    assert_eq!(report.verdict, Verdict::Pass);
    assert_eq!(report.prints, ["t_test.rego:4: hello {\"a\": 1}"]);
}

#[test]
fn a_test_that_takes_too_long_is_an_error() {
    let loops: String = ('a'..'h')
        .map(|v| format!("\tsome {v} in numbers.range(1, 30)\n"))
        .collect();
    let text =
        format!("package t\n\ntest_long if {{\n{loops}\ta + b + c + d + e + f + g == 0\n}}\n");
    let bench = bench(&[("t_test.rego", &text)], Watch::Nothing).unwrap();
    let options = TestOptions {
        time: Duration::from_millis(50),
        explain: true,
    };
    let report = bench.run(&bench.tests()[0], options);
    let Verdict::Error(Unanswered::Budget(text)) = report.verdict else {
        panic!("{report:?}")
    };
    assert_eq!(text, "timed out after 50ms");
}

#[test]
fn lines_are_covered_as_opa_counts_them() {
    let text = "package p_test\n\ntest_a if {\n\tdata.p.reason == \"nobody\" with input as {\"user\": \"bob\"}\n}\n";
    let bench = bench(&[("p.rego", POLICY), ("p_test.rego", text)], Watch::Lines).unwrap();
    let report = bench.run(&bench.tests()[0], OPTIONS);
    assert_eq!(report.verdict, Verdict::Pass);
    let all = bench.coverable();
    let ranges = Ranges::of(&all["p.rego"], &report.lines["p.rego"]);
    // Reached: the default, the first statement of `allow` (false), `allow` in `reason`, and `else`.
    assert_eq!(ranges.covered, [(5, 5), (8, 8), (15, 16)]);
    assert_eq!(ranges.not_covered, [(7, 7), (9, 9), (12, 12), (14, 14)]);
}

#[test]
fn a_question_is_answered_with_what_was_printed_and_what_held() {
    let bench = bench(&[("p.rego", POLICY)], Watch::Lines).unwrap();
    let question = Question {
        query: "data.p.reason".to_owned(),
        input: Some(Value::from_json_str(r#"{"user": "alice"}"#).unwrap()),
        time: Duration::from_secs(1),
    };
    let answered = bench.ask(&question).unwrap();
    assert_eq!(answered.answers[0].expressions[0].1, Value::from("owner"));
    let held: Vec<_> = answered
        .held
        .iter()
        .map(|held| (held.rule.as_str(), held.line))
        .collect();
    assert!(held.contains(&("data.p.allow", 7)), "{held:?}");
    assert!(held.contains(&("data.p.reason", 14)), "{held:?}");
    assert!(!held.contains(&("data.p.blocked", 12)), "{held:?}");
    let undefined = Question {
        query: "data.p.nothing".to_owned(),
        ..question.clone()
    };
    assert!(bench.ask(&undefined).unwrap().answers.is_empty());
    let broken = Question {
        query: "data.p.reason ==".to_owned(),
        ..question
    };
    assert!(matches!(bench.ask(&broken), Err(Unanswered::Error(_))));
}

#[test]
fn what_does_not_go_live_is_not_opened() {
    let problems = bench(&[("p.rego", "package p\n\nf(x) := f(x)\n")], Watch::Nothing).unwrap_err();
    assert_eq!(
        (problems[0].line, problems[0].column),
        (Some(3), Some(9)),
        "{problems:?}"
    );
    assert!(bench(&[("p.rego", "package p\n\nallow if {\n")], Watch::Nothing).is_err());
}

#[test]
fn of_a_chain_of_else_the_branch_that_holds_is_told() {
    let text = "package p\n\nd := \"a\" if {\n\tinput.x == 1\n} else := \"b\" if {\n\tinput.x == 2\n} else := \"c\" if {\n\tinput.x == 3\n} else := \"d\"\n\ne := \"a\" if {\n\tinput.x == 1\n} else := \"b\" if {\n\tinput.x == 2\n}\nelse := \"c\" if {\n\tinput.x == 3\n}\n";
    let bench = bench(&[("p.rego", text)], Watch::Lines).unwrap();
    let held = |rule: &str, x: u64| -> Vec<usize> {
        let question = Question {
            query: format!("data.p.{rule}"),
            input: Some(Value::from_json_str(&format!("{{\"x\": {x}}}")).unwrap()),
            time: Duration::from_secs(1),
        };
        let answered = bench.ask(&question).unwrap();
        answered.held.iter().map(|held| held.line).collect()
    };
    assert_eq!(held("d", 1), [3]);
    assert_eq!(held("d", 2), [5]);
    assert_eq!(held("d", 3), [7]);
    assert_eq!(held("d", 4), [9]);
    assert_eq!(held("e", 1), [11]);
    assert_eq!(held("e", 2), [13]);
    assert_eq!(held("e", 3), [16]);
}
