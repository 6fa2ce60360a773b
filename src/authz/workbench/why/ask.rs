//! Questions to the interpreter, with rules of ours beside the policy's.
//!
//! To put rules beside a policy prepares all of it anew, which is what costs; the same ones are asked
//! for again with the next question, so engines that have them are kept.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use regorus::Engine;
use regorus::unstable::Module;

use super::super::{Unanswered, Workbench, evaluate, package_path};
use super::{Asked, MAX_QUESTIONS};
use crate::authz::rego::host;
use crate::document::Value;

/// Names of rules beside a policy begin so.
pub(super) const RULE: &str = "portcullis_beside_";
/// Most engines that are kept.
const MAX_ENGINES: usize = 256;
/// Longest text that engines are kept for, in bytes.
const MAX_KEPT: usize = 16 * 1024;
/// The least time that is given to a question: with nothing left there is none.
const LEAST: Duration = Duration::from_micros(200);

/// What is asked for: the module it stands beside, and the rules.
type Beside = (usize, String);

/// Asks one policy.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) bench: Workbench,
    /// Engines by what stands beside; `None` where that cannot be prepared.
    engines: BTreeMap<Beside, Option<Engine>>,
    order: VecDeque<Beside>,
    input: Value,
    moment: host::Moment,
    until: Instant,
    questions: usize,
    /// The time, or the number of questions, was spent.
    spent: bool,
}

/// What a question came to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// Its solutions.
    Found(Vec<Value>),
    /// It cannot be evaluated.
    Error(String),
    /// It cannot be asked.
    Unknown,
}

impl Asker {
    pub(super) fn new(bench: Workbench) -> Self {
        Self {
            bench,
            engines: BTreeMap::new(),
            order: VecDeque::new(),
            input: Value::Undefined,
            moment: host::Moment::default(),
            until: Instant::now(),
            questions: 0,
            spent: false,
        }
    }

    pub(super) fn begin(&mut self, asked: &Asked, input: Value, until: Instant) {
        let mut request_id = [0; 32];
        for (to, from) in request_id.iter_mut().zip(asked.request_id.bytes()) {
            *to = from;
        }
        self.input = input;
        self.moment = host::Moment {
            now_ns: asked.received_at_ns,
            request_id,
        };
        self.until = until;
        self.questions = 0;
        self.spent = false;
    }

    /// Lets go of the question: it is somebody's request.
    pub(super) fn end(&mut self) {
        self.input = Value::Undefined;
    }

    pub(super) fn input(&self) -> &Value {
        &self.input
    }

    pub(super) fn spent(&self) -> bool {
        self.spent
    }

    fn left(&mut self) -> Option<Duration> {
        self.questions += 1;
        let left = self.until.saturating_duration_since(Instant::now());
        if self.spent || left < LEAST || self.questions > MAX_QUESTIONS {
            self.spent = true;
            return None;
        }
        Some(left)
    }

    fn query(
        engine: &mut Engine,
        input: &Value,
        moment: host::Moment,
        query: &str,
        time: Duration,
    ) -> Result<Option<Value>, Unanswered> {
        engine.set_input(input.clone());
        host::begin(moment);
        let result = evaluate(engine, query, time);
        let spent = host::spent();
        engine.set_input(Value::Undefined);
        let _ = engine.take_prints();
        if let Some(why) = spent {
            return Err(Unanswered::Budget(why));
        }
        let answers = result?;
        let first = answers
            .into_iter()
            .next()
            .and_then(|answer| answer.expressions.into_iter().next());
        Ok(first
            .map(|(_, value)| value)
            .filter(|value| *value != Value::Undefined))
    }

    /// The value of a path of the policy; `None` when it is undefined.
    pub(super) fn value(&mut self, path: &str) -> Result<Option<Value>, Unanswered> {
        let Some(time) = self.left() else {
            return Err(Unanswered::Budget("there is no time left".to_owned()));
        };
        let engine = &mut self.bench.engine;
        Self::query(engine, &self.input, self.moment, path, time)
            .map_err(|error| self.bench.placed(error))
    }

    /// The elements of a set beside a module.
    pub(super) fn beside(&mut self, module: usize, rules: &str, name: &str) -> Answer {
        let Some(time) = self.left() else {
            return Answer::Unknown;
        };
        let Some(package) = self.bench.modules.get(module).map(|it| package_path(it)) else {
            return Answer::Unknown;
        };
        let key = (module, rules.to_owned());
        if !self.engines.contains_key(&key) {
            let engine = prepared(&self.bench, module, rules);
            if rules.len() > MAX_KEPT {
                let Some(mut engine) = engine else {
                    return Answer::Unknown;
                };
                return self.set(&mut engine, &package, name, time);
            }
            while self.order.len() >= MAX_ENGINES {
                let Some(oldest) = self.order.pop_front() else {
                    break;
                };
                self.engines.remove(&oldest);
            }
            self.order.push_back(key.clone());
            self.engines.insert(key.clone(), engine);
        }
        let Some(Some(mut engine)) = self.engines.remove(&key) else {
            self.engines.insert(key, None);
            return Answer::Unknown;
        };
        let answer = self.set(&mut engine, &package, name, time);
        self.engines.insert(key, Some(engine));
        answer
    }

    fn set(&self, engine: &mut Engine, package: &str, name: &str, time: Duration) -> Answer {
        let query = format!("{package}.{RULE}{name}");
        match Self::query(engine, &self.input, self.moment, &query, time) {
            Ok(None) => Answer::Found(Vec::new()),
            Ok(Some(value)) => match value.as_set() {
                Ok(set) => Answer::Found(set.iter().cloned().collect()),
                Err(_) => Answer::Unknown,
            },
            Err(Unanswered::Budget(_)) => Answer::Unknown,
            Err(error) => Answer::Error(error.to_string()),
        }
    }
}

/// An engine with these rules beside a module, in its package and with its imports; `None` where they
/// do not go together.
fn prepared(bench: &Workbench, module: usize, rules: &str) -> Option<Engine> {
    let module: &Module = bench.modules.get(module)?;
    let source = &module.package.span.source;
    let first = module.policy.first()?.span().start;
    let head = source.get_contents().get(..usize::try_from(first).ok()?)?;
    let mut engine = bench.engine.clone();
    engine
        .add_policy(
            format!("{RULE}{}", source.get_path()),
            format!("{head}\n{rules}\n"),
        )
        .ok()?;
    engine.set_input(Value::Undefined);
    evaluate(&mut engine, "true", Duration::from_secs(5)).ok()?;
    Some(engine)
}
