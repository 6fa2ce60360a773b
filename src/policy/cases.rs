//! Tables of cases: who asks for what, and what should come of it.
//!
//! A case goes the way of a request: the configuration's own listeners and routes, the issuer's mapping
//! of claims, the policy of the route. One with an `input` of its own is asked of a rule directly. Tables
//! are the `.yaml` and `.json` files of folders called `cases`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::files::Set;
use super::report::{Outcome, Run};
use super::scenario::{self, Caller, Callers, Ground, Stage, Told, Wanted};
use super::worker::{Ask, Reply, ask_all};
use crate::authz::workbench::{FailedAt, Fault, Meaning, Test, TestReport, Unanswered, Verdict};
use crate::config;
use crate::document;
use crate::schema::{Named, Placed, Problem, Severity};

/// The folder that tables are in.
const FOLDER: &str = "cases";
/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 16;
/// Most tables.
const MAX_TABLES: usize = 1_000;
/// Most cases of a table.
const MAX_CASES: usize = 10_000;
/// How often a decision is asked for that used up its time.
const PATIENCE: usize = 10;
/// Longest time of one case that is asked of a rule.
const TIME: Duration = Duration::from_secs(5);

/// A table of cases: who asks for what, and what should come of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Portcullis cases")]
pub(super) struct TableConfig {
    /// Callers by name, beside those of `callers.yaml`.
    #[serde(default)]
    callers: Named<CallerConfig>,
    /// The cases. At most 10000.
    cases: Vec<CaseConfig>,
}

/// Somebody who asks. Nothing of it is verified: it is what a verified credential would say.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CallerConfig {
    /// The claims of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<Map<String, Value>>,
    /// The issuer's block, where the route takes several.
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    /// A client certificate: its SPIFFE id, a PEM file, or its names (`subject`, `dns`, `spiffe_id` …).
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Value>,
    /// The address it calls from.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
}

/// One case: a `request`, or the `input` of a rule.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseConfig {
    /// What it promises: `owners read their orders`.
    name: String,
    /// Why it is not run; for cases that wait for something.
    #[serde(default)]
    todo: Option<String>,
    /// `GET /orders/1001`, or a whole request with its headers, a line each.
    #[serde(default)]
    request: Option<String>,
    /// More headers.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// With `request`: its body. What is no text goes as JSON, and says so (`content-type`).
    #[serde(default)]
    body: Option<Value>,
    /// Who asks, by name. Without this and the keys below nobody: no credential.
    #[serde(default, rename = "as")]
    caller: Option<String>,
    /// Claims of the caller's token; beside `as`, in the place of those.
    #[serde(default)]
    claims: Option<Map<String, Value>>,
    /// The issuer's block, where the route takes several.
    #[serde(default)]
    issuer: Option<String>,
    /// The caller's certificate: its SPIFFE id, a PEM file, or its names.
    #[serde(default)]
    certificate: Option<Value>,
    /// The address the caller calls from.
    #[serde(default)]
    address: Option<IpAddr>,
    /// When, in RFC 3339. Default: now.
    #[serde(default)]
    at: Option<String>,
    /// The listener it comes to. Default: one that fits.
    #[serde(default)]
    listener: Option<String>,
    /// Asked in the place of a request: the document that the rule sees.
    #[serde(default)]
    input: Option<Value>,
    /// With `input`: the rule (`data.orders.decision`). Default: the entry point of the only policy.
    #[serde(default)]
    rule: Option<String>,
    /// In the place of the same members of `data`.
    #[serde(default)]
    data: Option<Map<String, Value>>,
    /// What should come of it: `allow`, `deny`, or the parts of the answer that count.
    #[serde(deserialize_with = "expected")]
    #[schemars(schema_with = "expected_schema")]
    expect: Expected,
}

/// The parts of an answer that count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expected {
    /// Whether the request reaches the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<bool>,
    /// The status of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// The code of the record: the policy's `reason`, or `missing`, `policy.undefined` …
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What the client reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The route that takes the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// How far it gets: `request`, `route`, `authentication`, `policy` or `allowed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    /// The rule's answer. Of objects, the members that are named here.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Value>,
}

/// `allow`, `deny`, or the parts.
fn expected<'de, D: Deserializer<'de>>(d: D) -> Result<Expected, D::Error> {
    struct WordOrParts;

    impl<'de> Visitor<'de> for WordOrParts {
        type Value = Expected;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("`allow`, `deny`, or a block such as `{ allow: false, reason: … }`")
        }

        fn visit_str<E: de::Error>(self, word: &str) -> Result<Expected, E> {
            let allow = match word {
                "allow" => true,
                "deny" => false,
                _ => return Err(E::invalid_value(de::Unexpected::Str(word), &self)),
            };
            Ok(Expected {
                allow: Some(allow),
                ..Expected::default()
            })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Expected, A::Error> {
            Deserialize::deserialize(MapAccessDeserializer::new(map))
        }
    }
    d.deserialize_any(WordOrParts)
}

fn expected_schema(generator: &mut SchemaGenerator) -> Schema {
    let parts = generator.subschema_for::<Expected>();
    json_schema!({ "anyOf": [{ "enum": ["allow", "deny"] }, parts] })
}

/// A table that was read.
#[derive(Debug)]
pub(super) struct Table {
    file: PathBuf,
    said: TableConfig,
    placed: Placed,
    callers: BTreeMap<String, Caller>,
}

impl Table {
    /// How many cases it has.
    pub(super) fn len(&self) -> usize {
        self.said.cases.len()
    }

    fn read(file: &Path) -> Result<Self, Vec<Problem>> {
        let (said, placed) = config::read_typed::<TableConfig>(file)?;
        let mut table = Self {
            file: file.to_path_buf(),
            said,
            placed,
            callers: BTreeMap::new(),
        };
        let mut problems = Vec::new();
        if table.len() == 0 {
            problems.push(table.problem("cases", "the table has no cases".to_owned()));
        }
        if table.len() > MAX_CASES {
            problems.push(table.problem("cases", format!("there are more than {MAX_CASES} cases")));
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        for (name, config) in &table.said.callers {
            match caller(config, folder) {
                Ok(caller) => drop(table.callers.insert(name.clone(), caller)),
                Err(why) => problems.push(table.problem(&format!("callers.{name}"), why)),
            }
        }
        let mut names = BTreeMap::new();
        for (index, case) in table.said.cases.iter().enumerate() {
            let mut wrong = |key: &str, why: String| {
                problems.push(table.problem(&format!("cases[{index}].{key}"), why));
            };
            if let Some(before) = names.insert(&case.name, index) {
                wrong("name", format!("cases[{before}] has this name, too"));
            }
            match (&case.request, &case.input) {
                (Some(_), Some(_)) => wrong("input", "the case has a request already".to_owned()),
                (None, None) => wrong(
                    "name",
                    "the case has neither `request` nor `input`".to_owned(),
                ),
                _ => {}
            }
            if case.at.is_some() && case.input.is_some() {
                wrong("at", "an `input` has its own time".to_owned());
            }
            if case.body.is_some() && case.input.is_some() {
                wrong("body", "an `input` has its own body".to_owned());
            }
            if case.rule.is_some() && case.input.is_none() {
                wrong(
                    "rule",
                    "only with `input`: a route says which rule decides".to_owned(),
                );
            }
            if case.expect == Expected::default() {
                wrong("expect", "nothing is expected".to_owned());
            }
            let stages = ["request", "route", "authentication", "policy", "allowed"];
            if let Some(stage) = &case.expect.stage
                && !stages.contains(&stage.as_str())
            {
                wrong("expect.stage", format!("one of {}", stages.join(", ")));
            }
        }
        if problems.is_empty() {
            Ok(table)
        } else {
            Err(problems)
        }
    }

    fn problem(&self, path: &str, message: String) -> Problem {
        let at = self.placed.positions().locate(path);
        Problem {
            severity: Severity::Error,
            file: self.file.clone(),
            line: at.map(|at| at.line),
            column: at.map(|at| at.column),
            path: path.to_owned(),
            message,
            help: None,
        }
    }

    fn test(&self, index: usize, case: &CaseConfig) -> Test {
        let stem = self.file.file_stem().unwrap_or_default();
        let at = self.placed.positions().locate(&format!("cases[{index}]"));
        Test::listed(
            &format!("cases.{}", stem.to_string_lossy()),
            &case.name,
            &self.file.display().to_string(),
            at.map_or((1, 1), |at| (at.line, at.column)),
        )
    }
}

fn caller(config: &CallerConfig, folder: &Path) -> Result<Caller, String> {
    let entry = serde_json::to_value(config).map_err(|error| error.to_string())?;
    scenario::described(entry, folder)
}

/// The schema of tables, for editors.
pub(super) fn schema() -> Value {
    schemars::schema_for!(TableConfig).to_value()
}

/// The tables of these paths: files in folders called `cases`, at any depth.
pub(super) fn tables(set: &Set) -> Result<Vec<Table>, Vec<Problem>> {
    let mut files = Vec::new();
    for path in &set.paths {
        find(&set.folder.join(path), false, 0, &mut files);
    }
    files.sort();
    files.dedup();
    let mut tables = Vec::new();
    let mut problems = Vec::new();
    for file in files.into_iter().take(MAX_TABLES) {
        match Table::read(&file) {
            Ok(table) => tables.push(table),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        Ok(tables)
    } else {
        Err(problems)
    }
}

fn find(path: &Path, inside: bool, depth: usize, files: &mut Vec<PathBuf>) {
    if depth > MAX_DEPTH || files.len() > MAX_TABLES {
        return;
    }
    let named = |path: &Path, name: &str| path.file_name().is_some_and(|found| found == name);
    if path.is_dir() {
        let inside = inside || named(path, FOLDER);
        let Ok(entries) = fs::read_dir(path) else {
            return;
        };
        for entry in entries.flatten() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden {
                find(&entry.path(), inside, depth + 1, files);
            }
        }
        return;
    }
    let yaml = path
        .extension()
        // JSON is YAML.
        .is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
    let inside = inside || path.parent().is_some_and(|folder| named(folder, FOLDER));
    if yaml && inside {
        files.push(path.to_path_buf());
    }
}

/// What cases are judged by.
#[derive(Debug)]
pub(super) struct Court<'a> {
    pub(super) set: &'a Set,
    /// The configuration, if there is one that loads. Without it requests cannot be asked.
    pub(super) ground: Option<&'a Ground>,
    pub(super) callers: &'a Callers,
}

/// A case that waits for a rule's answer.
struct Pending<'t> {
    case: &'t CaseConfig,
    run: usize,
    told: Option<Box<Told>>,
    table: &'t Table,
    index: usize,
}

impl Court<'_> {
    /// Runs the cases of a table that match, and counts those that cannot be asked.
    ///
    /// # Errors
    /// When the policy cannot be read at all.
    pub(super) fn judge(
        &self,
        table: &Table,
        filter: Option<&Regex>,
        unasked: &mut usize,
    ) -> Result<Vec<Run>, Vec<Problem>> {
        let mut runs = Vec::new();
        let mut pending = Vec::new();
        let mut asks = Vec::new();
        for (index, case) in table.said.cases.iter().enumerate() {
            let test = table.test(index, case);
            if filter.is_some_and(|filter| !filter.is_match(&test.full_name())) {
                continue;
            }
            if self.ground.is_none() && case.request.is_some() && case.todo.is_none() {
                *unasked += 1;
                continue;
            }
            let begun = std::time::Instant::now();
            let outcome = if case.todo.is_some() {
                TestReport::bare(Verdict::Skip, Duration::ZERO)
            } else {
                match self.prepared(table, case) {
                    Ok(Prepared::Told(told)) => {
                        let found = Found::told(&told);
                        judged(table, index, &case.expect, &found, begun.elapsed())
                    }
                    Ok(Prepared::Asks(ask, told)) => {
                        asks.push(ask);
                        pending.push(Pending {
                            case,
                            run: runs.len(),
                            told,
                            table,
                            index,
                        });
                        TestReport::bare(Verdict::Pass, Duration::ZERO)
                    }
                    Err(why) => TestReport::bare(failed(&test, why), begun.elapsed()),
                }
            };
            runs.push(Run {
                test,
                outcome: Outcome::Tested(outcome),
            });
        }
        let replies = ask_all(&self.set.material, false, asks)?;
        for (pending, reply) in pending.iter().zip(replies) {
            if let Some(run) = runs.get_mut(pending.run) {
                run.outcome = Outcome::Tested(pending.answered(reply));
            }
        }
        Ok(runs)
    }

    /// The inputs of the cases of a table that a policy decides, with their names: what `bench` asks.
    pub(super) fn inputs(
        &self,
        table: &Table,
        policy: &super::files::Named,
    ) -> Vec<(String, String)> {
        let mut inputs = Vec::new();
        for (index, case) in table.said.cases.iter().enumerate() {
            let name = table.test(index, case).full_name();
            let input = match (&case.request, &case.input) {
                _ if case.data.is_some() || case.todo.is_some() => None,
                (Some(request), _) => self
                    .told(table, case, request)
                    .ok()
                    .filter(|told| {
                        let decided = told.policy.as_ref().map(|(name, _)| &**name);
                        decided == Some(policy.name.as_str())
                    })
                    .and_then(|told| told.input?.to_json_str().ok()),
                (None, Some(input)) => self
                    .rule(case)
                    .ok()
                    .filter(|rule| *rule == policy.entrypoint)
                    .map(|_| input.to_string()),
                (None, None) => None,
            };
            inputs.extend(input.map(|input| (name, input)));
        }
        inputs
    }

    fn prepared(&self, table: &Table, case: &CaseConfig) -> Result<Prepared, String> {
        let Some(request) = &case.request else {
            let rule = self.rule(case)?;
            let input = case.input.clone().unwrap_or_default();
            return Ok(Prepared::Asks(ask(&rule, case, &input), None));
        };
        let told = self.told(table, case, request)?;
        let further = case.data.is_some() || case.expect.answer.is_some();
        if told.stage < Stage::Policy || !further {
            return Ok(Prepared::Told(Box::new(told)));
        }
        let name = told.policy.as_ref().map(|(name, _)| name.to_string());
        let policy = self
            .set
            .policies
            .iter()
            .find(|policy| Some(&policy.name) == name.as_ref())
            .ok_or_else(|| {
                let name = name.unwrap_or_default();
                format!("`data` and `answer` ask the policy `{name}`, whose files are others than those of this table")
            })?;
        let input = told
            .input
            .as_ref()
            .and_then(|input| input.to_json_str().ok())
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let ask = ask(&policy.entrypoint, case, &input);
        Ok(Prepared::Asks(ask, Some(Box::new(told))))
    }

    fn told(&self, table: &Table, case: &CaseConfig, request: &str) -> Result<Told, String> {
        let ground = self.ground.ok_or("there is no configuration")?;
        let mut wanted = Wanted::pasted(request).map_err(|error| error.to_string())?;
        for (name, value) in &case.headers {
            wanted
                .header(&format!("{name}: {value}"))
                .map_err(|error| error.to_string())?;
        }
        match &case.body {
            None => {}
            Some(Value::String(text)) => wanted.body.clone_from(text),
            Some(document) => {
                wanted.body = document.to_string();
                if !wanted.headers.contains_key(CONTENT_TYPE) {
                    let json = HeaderValue::from_static("application/json");
                    wanted.headers.insert(CONTENT_TYPE, json);
                }
            }
        }
        wanted.listener.clone_from(&case.listener);
        if let Some(at) = &case.at {
            wanted.at = scenario::time(at).map_err(|error| error.to_string())?;
        }
        let caller = self.caller(table, case)?;
        wanted.from = caller.address;
        let mut told = ground.ask(&wanted, &caller);
        // Time is the wall clock's: that the machine was busy is no fault of the policy.
        for _ in 1..PATIENCE {
            match &told {
                Ok(late) if late.reason.as_deref() == Some("policy.budget") => {
                    told = ground.ask(&wanted, &caller);
                }
                _ => break,
            }
        }
        told.map_err(|error| error.to_string())
    }

    fn caller(&self, table: &Table, case: &CaseConfig) -> Result<Caller, String> {
        let own = caller(
            &CallerConfig {
                claims: case.claims.clone(),
                issuer: case.issuer.clone(),
                certificate: case.certificate.clone(),
                address: case.address,
            },
            table.file.parent().unwrap_or(Path::new("")),
        )?;
        let Some(name) = &case.caller else {
            return Ok(own);
        };
        let mut caller = match table.callers.get(name) {
            Some(caller) => caller.clone(),
            None => match self.callers.by_name.get(name) {
                Some(caller) => caller.clone(),
                None => {
                    let known = table.callers.keys().chain(self.callers.by_name.keys());
                    let help = crate::schema::known_names(name, known.map(String::as_str));
                    return Err(format!("there is no caller `{name}`: {help}"));
                }
            },
        };
        if case.claims.is_some() {
            caller.supposition = own.supposition;
        }
        caller.certificate = own.certificate.or(caller.certificate);
        caller.address = own.address.or(caller.address);
        Ok(caller)
    }

    fn rule(&self, case: &CaseConfig) -> Result<String, String> {
        match (&case.rule, self.set.policies.as_slice()) {
            (Some(rule), _) => Ok(rule.clone()),
            (None, [policy]) => Ok(policy.entrypoint.clone()),
            (None, _) => Err("say which rule is asked: `rule: data.orders.decision`".to_owned()),
        }
    }
}

enum Prepared {
    Told(Box<Told>),
    Asks(Ask, Option<Box<Told>>),
}

fn ask(rule: &str, case: &CaseConfig, input: &Value) -> Ask {
    let mut query = rule.to_owned();
    for (name, value) in case.data.iter().flatten() {
        query.push_str(&format!(
            " with data[{}] as {value}",
            Value::from(name.as_str())
        ));
    }
    Ask {
        query,
        input: Some(input.to_string()),
        time: TIME,
    }
}

fn failed(test: &Test, message: String) -> Verdict {
    Verdict::Error(Unanswered::Error(Fault {
        message,
        file: test.file.clone(),
        line: test.line,
        column: test.column,
    }))
}

/// What came of a case.
struct Found {
    allow: bool,
    status: Option<u16>,
    reason: Option<String>,
    message: Option<String>,
    route: Option<String>,
    stage: Option<&'static str>,
    detail: Option<String>,
    answer: Option<Value>,
}

impl Found {
    fn told(told: &Told) -> Self {
        Self {
            allow: told.allowed(),
            status: told.face.as_ref().map(|face| face.status.as_u16()),
            reason: told.reason.clone(),
            message: told.message.clone(),
            route: told.route.as_ref().map(ToString::to_string),
            stage: Some(told.stage.word()),
            detail: told.detail.clone(),
            answer: None,
        }
    }

    fn answered(answer: Option<Value>, told: Option<&Told>) -> Self {
        let value = answer
            .as_ref()
            .and_then(|answer| document::from_json(answer.to_string().as_bytes()).ok());
        let meaning = Meaning::of(value.as_ref());
        Self {
            allow: meaning.allow,
            status: meaning.status,
            reason: meaning.reason,
            message: meaning.message,
            route: told.and_then(|told| told.route.as_ref().map(ToString::to_string)),
            stage: told.map(|_| if meaning.allow { "allowed" } else { "policy" }),
            detail: meaning.detail,
            answer,
        }
    }
}

impl Pending<'_> {
    fn answered(&self, reply: Result<Reply, Unanswered>) -> TestReport {
        match reply {
            Err(error) => TestReport::bare(Verdict::Error(error), Duration::ZERO),
            Ok(reply) => {
                let answer = reply
                    .solutions
                    .into_iter()
                    .next()
                    .and_then(|solution| solution.expressions.into_iter().next())
                    .and_then(|(_, value)| value);
                let found = Found::answered(answer, self.told.as_deref());
                let expect = &self.case.expect;
                let mut report = judged(self.table, self.index, expect, &found, reply.duration);
                report.prints = reply.prints;
                report
            }
        }
    }
}

fn judged(
    table: &Table,
    index: usize,
    expect: &Expected,
    found: &Found,
    duration: Duration,
) -> TestReport {
    let mut wrong: Vec<(&str, String, String)> = Vec::new();
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let word = |allow: bool| if allow { "allow" } else { "deny" }.to_owned();
    if let Some(allow) = expect.allow.filter(|allow| *allow != found.allow) {
        wrong.push(("allow", word(allow), word(found.allow)));
    }
    // A misspelt path is refused too, and would be for ever.
    let meant = expect.stage.is_some() || expect.status.is_some() || expect.reason.is_some();
    if found.stage == Some("route") && wrong.is_empty() && !meant {
        let got = "no route takes it; `stage: route` says that this is meant";
        wrong.push(("allow", "deny".to_owned(), got.to_owned()));
    }
    if let Some(status) = expect.status.filter(|status| Some(*status) != found.status) {
        let got = found.status.map(|status| status.to_string());
        wrong.push(("status", status.to_string(), text(&got)));
    }
    for (key, expected, got) in [
        ("reason", &expect.reason, &found.reason),
        ("message", &expect.message, &found.message),
        ("route", &expect.route, &found.route),
        ("stage", &expect.stage, &found.stage.map(str::to_owned)),
    ] {
        if expected.is_some() && expected != got {
            wrong.push((key, text(expected), text(got)));
        }
    }
    if let Some(expected) = &expect.answer
        && !found
            .answer
            .as_ref()
            .is_some_and(|answer| within(expected, answer))
    {
        let got = found.answer.as_ref().map(Value::to_string);
        let got = got.unwrap_or_else(|| "undefined".to_owned());
        wrong.push(("answer", expected.to_string(), got));
    }
    let Some((key, expected, _)) = wrong.first() else {
        return TestReport::bare(Verdict::Pass, duration);
    };
    let mut report = TestReport::bare(Verdict::Fail, duration);
    let positions = table.placed.positions();
    let at = positions
        .locate(&format!("cases[{index}].expect.{key}"))
        .map_or((1, 1), |at| (at.line, at.column));
    let mut values: Vec<(String, String)> = wrong
        .iter()
        .map(|(key, expected, got)| ((*key).to_owned(), format!("{got}, expected {expected}")))
        .collect();
    let named = |key: &str| wrong.iter().any(|(wrong, _, _)| *wrong == key);
    for (key, value) in [
        ("stage", &found.stage.map(str::to_owned)),
        ("route", &found.route),
        ("reason", &found.reason),
        ("detail", &found.detail),
    ] {
        if let Some(value) = value.as_ref().filter(|_| !named(key)) {
            values.push((key.to_owned(), value.clone()));
        }
    }
    report.failed_at = Some(FailedAt {
        file: table.file.display().to_string(),
        line: at.0,
        column: at.1,
        text: format!("expect {key}: {expected}"),
        values,
    });
    report
}

/// Whether all that is expected is in what was found.
fn within(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => expected
            .iter()
            .all(|(name, value)| found.get(name).is_some_and(|found| within(value, found))),
        (Value::Number(expected), Value::Number(found)) => {
            expected == found || expected.as_f64() == found.as_f64()
        }
        (expected, found) => expected == found,
    }
}
