//! Policies that would hold a worker without end, or eat its memory: each comes back within a small
//! multiple of its budget, on both engines, and the next request is decided.
//!
//! The gate's checks are left out: what they refuse must be harmless too when it runs.

use std::num::NonZeroU64;
use std::thread;
use std::time::Duration;

use regorus::Value;
use rustix::time::{ClockId, clock_gettime};

use crate::authz::rego::{self, Limits, Machine, Outcome, Program};
use crate::authz::source::expansion;

const LIMITS: Limits = Limits {
    time: Duration::from_millis(20),
    instructions: 100_000,
    memory: NonZeroU64::new(16 << 20).expect("16 MiB is not zero"),
};
/// What a decision may take of a core, in a build without optimisation: many times its budget, and
/// nothing beside what these policies ask for.
const MOST_TIME: Duration = Duration::from_millis(600);
/// What it may take of memory, bytes: its budget, the slack of the interpreter, and one step.
const MOST_MEMORY: i64 = 160 << 20;
/// The stack of a worker.
const STACK: usize = 2 << 20;

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap(),
        u32::try_from(now.tv_nsec).unwrap(),
    )
}

/// `step` so many times, each with the number of the one before and its own.
fn chain(first: &str, step: &str, times: usize, last: &str) -> String {
    let mut text = format!("allow if {{\n  v0 := {first}\n");
    for at in 1..=times {
        let line = step
            .replace("NEXT", &format!("v{at}"))
            .replace("LAST", &format!("v{}", at - 1));
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!(
        "  {}\n}}",
        last.replace("END", &format!("v{times}"))
    ));
    text
}

fn hazards() -> Vec<(&'static str, String)> {
    let twice = |last: &str| chain("[input.n]", "NEXT := [LAST, LAST]", 40, last);
    let two = |last: &str| {
        let one = chain("[input.n]", "NEXT := [LAST, LAST]", 40, "END != 1");
        let other = one
            .replace("allow if", "other := v40 if")
            .replace("v40 != 1", "true");
        let one = one
            .replace("allow if", "one := v40 if")
            .replace("v40 != 1", "true");
        format!("{one}\n{other}\nallow if {last}")
    };
    vec![
        ("a join of joins", "allow if count([1 | some a in data.xs; some b in data.xs; some c in data.xs; a + b == c]) == 1".to_owned()),
        ("a join under not", "bad if { some a in data.xs; some b in data.xs; some c in data.xs; a + b == 0 - c - 1 }\nallow if not bad".to_owned()),
        ("every over every", "allow if { every a in data.xs { every b in data.xs { every c in data.xs { a + b != 0 - c - 1 } } } }".to_owned()),
        ("nested comprehensions", "allow if count([x | some a in data.xs; x := [y | some b in data.xs; y := [a, b]]]) == 1".to_owned()),
        ("pairs of pairs in a set", "allow if { one := {[a, b] | some a in data.xs; some b in data.xs}; count({[a, b] | some a in one; some b in one}) > 0 }".to_owned()),
        ("an object of pairs", "allow if count({k: v | some a in data.xs; some b in data.xs; k := sprintf(\"%d-%d\", [a, b]); v := [a, b]}) > 0".to_owned()),
        ("walk by walk", "allow if count([1 | walk(data, [p, x]); walk(data, [q, y]); p == q; x != y]) > 0".to_owned()),
        ("a text that doubles", chain("\"xxxxxxxxxxxxxxxx\"", "NEXT := concat(\"\", [LAST, LAST])", 40, "count(END) > 0")),
        ("a text that doubles by format", chain("\"xxxxxxxxxxxxxxxx\"", "NEXT := sprintf(\"%s%s\", [LAST, LAST])", 40, "count(END) > 0")),
        ("a text that grows by replace", chain("\"xxxxxxxxxxxxxxxx\"", "NEXT := replace(LAST, \"x\", \"xxxxxxxx\")", 20, "count(END) > 0")),
        ("a text that grows by replace_n", chain("\"xxxxxxxxxxxxxxxx\"", "NEXT := strings.replace_n({\"x\": \"xxxxxxxx\"}, LAST)", 20, "count(END) > 0")),
        ("a text that grows by regex.replace", chain("\"xxxxxxxxxxxxxxxx\"", "NEXT := regex.replace(LAST, \"x\", \"xxxxxxxx\")", 20, "count(END) > 0")),
        ("an array that doubles", chain("[1, 2, 3]", "NEXT := array.concat(LAST, LAST)", 40, "count(END) > 0")),
        ("a value that holds itself twice, written", twice("json.marshal(END) != \"\"")),
        ("a value that holds itself twice, formatted", twice("sprintf(\"%v\", [END]) != \"\"")),
        ("a value that holds itself twice, as an answer", twice("true").replacen("allow if", "allow := {\"allow\": true, \"identity\": {\"x\": v40}} if", 1)),
        ("a value that holds itself twice, walked", twice("count([1 | walk(END, [p, x])]) > 0")),
        ("two values that hold themselves twice, compared", two("one == other")),
        ("two values that hold themselves twice, ordered", two("one <= other")),
        ("two values that hold themselves twice, found", two("one in [other]")),
        ("two values that hold themselves twice, in a set", two("count({one, other}) == 1")),
        ("two values that hold themselves twice, as keys", two("{one: 1}[other] == 1")),
        ("two values that hold themselves twice, unified", two("one = other")),
        ("two values that hold themselves twice, subtracted", two("count({one} - {other}) == 0")),
        ("two values that hold themselves twice, sorted", two("count(sort([one, other])) == 2")),
        ("two values that hold themselves twice, max", two("max([one, other]) == 1")),
        ("many references to large values, ordered", "allow if { a := [data.xs | some i in data.xs]; b := [array.concat(data.xs, []) | some i in data.xs]; c := [[a, a, a, a], [a, a, a, a]]; d := [[b, b, b, b], [b, b, b, b]]; c <= d }".to_owned()),
        ("a number that squares itself", chain("7", "NEXT := LAST * LAST", 40, "END > 0")),
        ("a range", "allow if count(numbers.range(1, input.n * 100000000)) > 0".to_owned()),
        ("a range by steps", "allow if count(numbers.range_step(1, input.n * 100000000, 1)) > 0".to_owned()),
        ("a network's addresses", "allow if count(net.cidr_expand(input.cidr)) > 0".to_owned()),
        ("a width", "allow if sprintf(input.format, [1]) != \"\"".to_owned()),
        ("a shift", "allow if bits.lsh(1, input.n * 1000000000) > 0".to_owned()),
        ("a number with a large exponent", "allow if to_number(\"1e999999999\") + 1 > 0".to_owned()),
        ("units with many digits", "allow if units.parse_bytes(concat(\"\", [d | some i in numbers.range(1, 9000); d := \"9\"])) > 0".to_owned()),
        ("deep JSON", "allow if json.unmarshal(concat(\"\", [d | some i in numbers.range(1, 9000); d := \"[\"]))".to_owned()),
        ("a pattern that backtracks", "allow if regex.match(\"^(a+)+$\", input.long)".to_owned()),
        ("a pattern that is large inside", "allow if regex.match(\"((a{0,100}){0,100}){0,100}$\", input.long)".to_owned()),
        ("patterns without end", "allow if count([1 | some x in data.xs; regex.match(sprintf(\"^(a|b|%d)*c$\", [x]), input.long)]) > 0".to_owned()),
        ("globs without end", "allow if count([1 | some x in data.xs; glob.match(sprintf(\"*a*a*a*%d*\", [x]), [], input.long)]) > 0".to_owned()),
        ("a search that finds all", "allow if count(regex.find_n(\"a\", input.long, -1)) + count(regex.split(\"a\", input.long)) + count(indexof_n(input.long, \"a\")) > 0".to_owned()),
        ("a split into letters, many times", "allow if count([x | some i in data.xs; x := split(input.long, \"\")]) > 0".to_owned()),
        ("sorting, many times", "allow if count([x | some i in data.xs; x := sort(data.xs)]) > 0".to_owned()),
        ("unions, many times", "allow if count([x | some i in data.xs; x := object.union_n([data.graph, {\"k\": i}])]) > 0".to_owned()),
        ("set algebra, many times", "allow if { s := {x | some x in data.xs}; count([x | some i in s; x := (s | {i}) & (s - {i})]) > 0 }".to_owned()),
        ("a graph, many times", "allow if count([x | some i in data.xs; x := graph.reachable(data.graph, {\"0\"})]) > 0".to_owned()),
        ("all paths of a graph", "allow if count(graph.reachable_paths(data.dense, {\"0\"})) > 0".to_owned()),
        ("patches that copy", "allow if { ops := [{\"op\": \"copy\", \"from\": \"/a\", \"path\": sprintf(\"/a/x%d\", [i])} | some i in numbers.range(1, 60)]; json.patch({\"a\": {\"b\": 1}}, ops) != {} }".to_owned()),
        ("an empty text counted", "allow if strings.count(input.long, \"\") > 0".to_owned()),
        ("prefixes of all by all", "allow if { ps := [p | some x in data.xs; p := sprintf(\"%d\", [x])]; count([1 | some x in data.xs; strings.any_prefix_match(ps, [input.long])]) > 0 }".to_owned()),
    ]
}

fn data() -> Value {
    let xs: Vec<Value> = (0..600i64).map(Value::from).collect();
    let graph = |edges: &dyn Fn(usize) -> Vec<usize>, nodes: usize| {
        Value::from(
            (0..nodes)
                .map(|node| {
                    let to = edges(node)
                        .into_iter()
                        .map(|to| Value::from(to.to_string()));
                    (
                        Value::from(node.to_string()),
                        Value::from(to.collect::<Vec<_>>()),
                    )
                })
                .collect::<std::collections::BTreeMap<_, _>>(),
        )
    };
    crate::document::object([
        ("xs", Value::from(xs)),
        ("graph", graph(&|node| vec![node + 1, node / 2], 500)),
        ("dense", graph(&|_| (0..24).collect(), 24)),
    ])
}

fn input() -> Value {
    crate::document::object([
        ("n", Value::from(7i64)),
        ("cidr", Value::from("10.0.0.0/8")),
        ("format", Value::from("%999999999d")),
        ("long", Value::from("a".repeat(20_000))),
    ])
}

#[derive(Debug)]
struct Seen {
    outcome: String,
    cpu: Duration,
    memory: i64,
    next: bool,
}

/// Runs it as a worker does, on a thread of its own; `None` when it does not compile for this engine.
fn seen(name: &str, rules: &str, rvm: bool) -> Option<Seen> {
    let compared = [", compared", ", ordered"]
        .iter()
        .any(|end| name.ends_with(end));
    let text = format!("package p\n{rules}\n");
    let worker = thread::Builder::new().stack_size(STACK).spawn(move || {
        let sources = [("p.rego".to_owned(), text)];
        let engine = rego::parse(&sources, &data()).unwrap();
        let next = [(
            "n.rego".to_owned(),
            "package n\nallow if input.n == 7\n".to_owned(),
        )];
        let next = rego::parse(&next, &Value::new_object()).unwrap();
        let program = |engine, entry: &str| {
            if rvm {
                Program::compiled(engine, entry, LIMITS)
            } else {
                Program::interpreted(engine, entry, LIMITS)
            }
        };
        let mut engine = engine;
        // What has no end to whoever goes through it does not go live. On the machine these would
        // come back too, as far as they are compared and nothing else.
        let refused = !expansion::check(engine.get_modules()).is_empty();
        if refused && !(rvm && compared) {
            return None;
        }
        let hazard = program(engine, "data.p.allow").ok()?;
        let next = program(next, "data.n.allow").unwrap();
        let mut machine = Machine::new(&hazard).unwrap();
        let before = regorus_mimalloc::current_thread_allocation_stats();
        let begun = cpu();
        let outcome = machine.run(input());
        let outcome = match &outcome {
            // Whoever reads an answer stops where it grows too large.
            Outcome::Answer(value) => {
                format!("answer of weight {}", crate::authz::answer::weight(value))
            }
            other @ (Outcome::Error(_) | Outcome::Budget(_) | Outcome::Panic(_)) => {
                format!("{other:?}").chars().take(90).collect()
            }
        };
        let cpu = cpu() - begun;
        let after = regorus_mimalloc::current_thread_allocation_stats();
        let next = Machine::new(&next).unwrap().run(input());
        Some(Seen {
            outcome,
            cpu,
            memory: after.peak - before.allocated,
            next: next == Outcome::Answer(Value::from(true)),
        })
    });
    worker.unwrap().join().unwrap()
}

#[test]
fn no_policy_holds_a_worker_longer_than_its_budget() {
    let only = std::env::var("PORTCULLIS_HAZARD").unwrap_or_default();
    let mut wrong = Vec::new();
    let (mut ran, mut spent) = (0, 0);
    for (name, rules) in hazards() {
        if !name.contains(&only) {
            continue;
        }
        for rvm in [true, false] {
            let Some(seen) = seen(name, &rules, rvm) else {
                continue;
            };
            ran += 1;
            spent += usize::from(seen.outcome.starts_with("Budget"));
            let engine = if rvm { "machine" } else { "interpreter" };
            let line = format!(
                "{name}, {engine}: {:?}, {} KiB: {}",
                seen.cpu,
                seen.memory / 1024,
                seen.outcome
            );
            println!("{line}");
            if seen.cpu > MOST_TIME || seen.memory > MOST_MEMORY || !seen.next {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        !only.is_empty() || ran > 60 && spent * 2 > ran,
        "{ran} ran, {spent} spent"
    );
}
