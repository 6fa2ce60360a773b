//! Where the tools evaluate: in a process of its own, which a policy may bring down.
//!
//! A stack that overflows takes a whole process with it, and some work of the engine cannot be stopped
//! from within. So the tools start this program once more, hand over one [`Job`] on standard input, and
//! read one [`Event`] a line. When the process dies, or is late and is ended, whoever asked knows what
//! it was at, and starts another for the rest.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of what a process tells, what was asked for counts"
)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit;
use crate::authz::workbench::why::{Text, Why};
use crate::authz::workbench::{
    Answered, Held, Lines, Material, Paced, Question, Test, TestOptions, TestReport, Unanswered,
    Watch, Workbench,
};
use crate::document;
use crate::schema::{Problem, Severity};

/// The stack that a policy must do with, as in the gate.
const STACK: usize = 1536 * 1024;
/// Largest job, bytes.
const MAX_JOB: u64 = 256 * 1024 * 1024;
/// Longest time until the modules are parsed and checked.
pub(super) const OPENING: Duration = Duration::from_secs(30);
/// What a process may take longer than the evaluation that it was asked for.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// Events that wait to be read.
const WAITING: usize = 1024;

/// What is to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) material: Material,
    /// Whether to note the lines that are reached.
    pub(super) lines: bool,
    pub(super) work: Work,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Work {
    /// Tell what there is.
    Open,
    /// Run these tests, in this order.
    Tests(Vec<usize>, TestOptions),
    /// Time these tests: at most so many evaluations each, within a time.
    Time(Vec<usize>, usize, Duration),
    /// Answer these questions.
    Ask(Vec<Ask>),
    /// Count and time decisions of an entry point on these inputs (JSON): at most so many evaluations
    /// each, within a time.
    Pace(String, Vec<String>, usize, Duration),
    /// Tell why a record was decided as it was: the policy's text and the line, within a time.
    Why(String, String, Duration),
}

/// A question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) query: String,
    /// JSON.
    pub(super) input: Option<String>,
    pub(super) time: Duration,
}

/// What a process tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Event {
    /// The modules do not go live.
    Refused(Vec<Problem>),
    /// They are parsed.
    Opened {
        tests: Vec<Test>,
        warnings: Vec<Problem>,
        coverable: Lines,
    },
    /// It begins with this test or question.
    Begun(usize),
    /// A test has ended.
    Tested(usize, TestReport),
    /// A question is answered.
    Answered(usize, Result<Reply, Unanswered>),
    /// What a test or question took, in nanoseconds.
    Timed(usize, Result<Vec<u64>, Unanswered>),
    /// What decisions cost.
    Paced(Result<Paces, Vec<String>>),
    /// Why a record was decided as it was, or why that is not told.
    Why(Result<Box<Why>, String>),
    /// All is done.
    Ended,
}

/// What the decisions of an entry point cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Paces {
    /// `rvm` or `interpreter`.
    pub(super) engine: String,
    /// Of each input.
    pub(super) decisions: Vec<Result<Decision, String>>,
    /// The costliest first.
    pub(super) rules: Vec<RuleSteps>,
}

/// What one decision costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Decision {
    /// The same on every machine.
    pub(super) steps: u64,
    /// Nanoseconds of each evaluation.
    pub(super) times: Vec<u64>,
    /// Bytes.
    pub(super) memory: u64,
}

/// What one rule cost over all inputs, without the rules that it calls.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RuleSteps {
    pub(super) rule: String,
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) evaluations: u64,
    pub(super) steps: u64,
}

/// An answer, as far as it can be written as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Reply {
    /// Per solution: the expressions with their values, and the bindings. JSON; `None` is undefined.
    pub(super) solutions: Vec<ReplySolution>,
    pub(super) prints: Vec<String>,
    pub(super) duration: Duration,
    pub(super) held: Vec<Held>,
    pub(super) lines: Lines,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ReplySolution {
    pub(super) expressions: Vec<(String, Option<serde_json::Value>)>,
    pub(super) bindings: serde_json::Value,
}

/// Why a process told no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It ended by itself.
    Died,
    /// It was ended.
    Late,
    /// It could not be started.
    NotStarted(String),
}

impl Fate {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Died => {
                "the evaluation brought its process down: the stack overflowed, or memory ran out"
                    .to_owned()
            }
            Self::Late => {
                "the evaluation could not be stopped from within, and its process was ended"
                    .to_owned()
            }
            Self::NotStarted(why) => format!("the process that evaluates did not start: {why}"),
        }
    }

    /// What to say when the modules could not even be read.
    pub(super) fn problem(&self, material: &Material) -> Problem {
        let file = material
            .modules
            .first()
            .map_or("", |(file, _)| file.as_str());
        Problem {
            severity: Severity::Error,
            file: file.into(),
            line: None,
            column: None,
            path: String::new(),
            message: match self {
                Self::Died => "reading the modules brought its process down".to_owned(),
                Self::Late => format!("reading the modules took more than {} s", OPENING.as_secs()),
                Self::NotStarted(_) => self.words(),
            },
            help: Some("look for what nests or grows without end".to_owned()),
        }
    }
}

/// Has a job done. `on` gets every event and says how long the next one may take.
pub(super) fn converse(job: &Job, mut on: impl FnMut(Event) -> Duration) -> Result<(), Fate> {
    let not_started = |error: io::Error| Fate::NotStarted(error.to_string());
    let program = std::env::current_exe().map_err(not_started)?;
    let text = serde_json::to_vec(job).map_err(|error| Fate::NotStarted(error.to_string()))?;
    let mut child = Command::new(program)
        .args(["policy", "worker"])
        // Secrets live in the environment, and a policy has no business with it.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(not_started)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // Neither pipe may hold us up: both ends are worked by threads that end with the child.
    let writer = thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&text);
        }
    });
    let (sender, receiver) = sync_channel(WAITING);
    let reader = thread::spawn(move || {
        let Some(stdout) = stdout else { return };
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            let Ok(event) = serde_json::from_str::<Event>(&line) else {
                return;
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    let mut limit = OPENING;
    let fate = loop {
        match receiver.recv_timeout(limit) {
            Ok(Event::Ended) => break Ok(()),
            Ok(event @ Event::Refused(_)) => {
                on(event);
                break Ok(());
            }
            Ok(event) => limit = on(event),
            Err(RecvTimeoutError::Timeout) => break Err(Fate::Late),
            Err(RecvTimeoutError::Disconnected) => break Err(Fate::Died),
        }
    };
    // Whoever has ended is done; whoever has not is ended.
    let _ = child.kill();
    let _ = child.wait();
    drop(receiver);
    let _ = (writer.join(), reader.join());
    fate
}

/// The other side.
pub(super) fn serve() -> ExitCode {
    let mut text = Vec::new();
    if io::stdin()
        .lock()
        .take(MAX_JOB)
        .read_to_end(&mut text)
        .is_err()
    {
        return ExitCode::from(2);
    }
    let Ok(job) = serde_json::from_slice::<Job>(&text) else {
        return ExitCode::from(2);
    };
    let done = thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || work(job))
        .map(thread::JoinHandle::join);
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn tell(event: &Event) {
    let Ok(mut text) = serde_json::to_vec(event) else {
        return;
    };
    text.push(b'\n');
    let mut out = io::stdout();
    let _ = out.write_all(&text).and_then(|()| out.flush());
}

fn work(job: Job) {
    if let Work::Why(text, line, time) = &job.work {
        let why = Text::from_json(text.as_bytes()).and_then(|text| {
            audit::why::explain(line.as_bytes(), &text, *time).map_err(|untold| untold.to_string())
        });
        tell(&Event::Why(why.map(Box::new)));
        return tell(&Event::Ended);
    }
    let watch = if job.lines {
        Watch::Lines
    } else {
        Watch::Nothing
    };
    let bench = match Workbench::open(&job.material, watch) {
        Ok(bench) => bench,
        Err(problems) => return tell(&Event::Refused(problems)),
    };
    tell(&Event::Opened {
        tests: bench.tests().to_vec(),
        warnings: bench.remarks().to_vec(),
        coverable: if job.lines {
            bench.coverable()
        } else {
            Lines::new()
        },
    });
    match job.work {
        Work::Open => {}
        Work::Tests(indices, options) => each_test(&bench, &indices, |index, test| {
            Event::Tested(index, bench.run(test, options))
        }),
        Work::Time(indices, count, limit) => each_test(&bench, &indices, |index, test| {
            Event::Timed(index, bench.time_test(test, count, limit).map(nanos))
        }),
        Work::Ask(questions) => {
            for (index, ask) in questions.iter().enumerate() {
                tell(&Event::Begun(index));
                let answered = question(ask).and_then(|question| bench.ask(&question));
                tell(&Event::Answered(index, answered.map(reply)));
            }
        }
        Work::Pace(entrypoint, inputs, count, limit) => {
            let inputs = inputs
                .iter()
                .map(|text| document::from_json(text.as_bytes()));
            let paced = inputs
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| vec![format!("an input cannot be read: {error}")])
                .and_then(|inputs| job.material.pace(&entrypoint, &inputs, count, limit));
            tell(&Event::Paced(paced.map(paces)));
        }
        // It brings its own modules.
        Work::Why(..) => {}
    }
    tell(&Event::Ended);
}

fn each_test(bench: &Workbench, indices: &[usize], run: impl Fn(usize, &Test) -> Event) {
    for index in indices {
        if let Some(test) = bench.tests().get(*index) {
            tell(&Event::Begun(*index));
            tell(&run(*index, test));
        }
    }
}

fn question(ask: &Ask) -> Result<Question, Unanswered> {
    let input = match &ask.input {
        None => None,
        Some(text) => Some(
            document::from_json(text.as_bytes())
                .map_err(|error| Unanswered::Panic(format!("the input cannot be read: {error}")))?,
        ),
    };
    Ok(Question {
        query: ask.query.clone(),
        input,
        time: ask.time,
    })
}

fn nanos(times: Vec<Duration>) -> Vec<u64> {
    times
        .into_iter()
        .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        .collect()
}

fn paces(paced: Paced) -> Paces {
    let decisions = paced.cost.decisions.into_iter().zip(paced.paces);
    Paces {
        engine: paced.cost.engine.to_owned(),
        decisions: decisions
            .map(|(steps, pace)| {
                let (steps, pace) = (steps?, pace?);
                Ok(Decision {
                    steps,
                    times: pace.times,
                    memory: pace.memory,
                })
            })
            .collect(),
        rules: paced
            .cost
            .rules
            .into_iter()
            .map(|rule| RuleSteps {
                rule: rule.rule,
                file: rule.file,
                line: rule.line,
                evaluations: rule.evaluations,
                steps: rule.steps,
            })
            .collect(),
    }
}

fn json(value: &document::Value) -> Option<serde_json::Value> {
    let text = value.to_json_str().ok()?;
    serde_json::from_str(&text).ok()
}

fn reply(answered: Answered) -> Reply {
    Reply {
        solutions: answered
            .answers
            .iter()
            .map(|solution| ReplySolution {
                expressions: solution
                    .expressions
                    .iter()
                    .map(|(text, value)| (text.clone(), json(value)))
                    .collect(),
                bindings: json(&solution.bindings).unwrap_or_default(),
            })
            .collect(),
        prints: answered.prints,
        duration: answered.duration,
        held: answered.held,
        lines: answered.lines,
    }
}

/// Has questions answered, each by itself: one that brings its process down costs the others nothing.
pub(super) fn ask_all(
    material: &Material,
    lines: bool,
    asks: Vec<Ask>,
) -> Result<Vec<Result<Reply, Unanswered>>, Vec<Problem>> {
    let mut replies: Vec<Option<Result<Reply, Unanswered>>> = asks.iter().map(|_| None).collect();
    loop {
        let left: Vec<usize> = replies
            .iter()
            .enumerate()
            .filter(|(_, reply)| reply.is_none())
            .map(|(index, _)| index)
            .collect();
        if left.is_empty() {
            break;
        }
        let work = Work::Ask(
            left.iter()
                .filter_map(|index| asks.get(*index).cloned())
                .collect(),
        );
        let job = Job {
            material: material.clone(),
            lines,
            work,
        };
        let mut problems = Vec::new();
        let mut current = None;
        let fate = converse(&job, |event| {
            match event {
                Event::Refused(found) => problems = found,
                Event::Begun(at) => current = left.get(at).copied(),
                Event::Answered(at, reply) => {
                    current = None;
                    if let Some(slot) = left.get(at).and_then(|index| replies.get_mut(*index)) {
                        *slot = Some(reply);
                    }
                }
                _ => {}
            }
            let longest = asks.iter().map(|ask| ask.time).max().unwrap_or_default();
            longest + GRACE
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        match (fate, current) {
            (Ok(()), _) => break,
            (Err(fate), Some(index)) => {
                if let Some(slot) = replies.get_mut(index) {
                    *slot = Some(Err(Unanswered::Budget(fate.words())));
                }
            }
            (Err(fate), None) => return Err(vec![fate.problem(material)]),
        }
    }
    let missing = || Err(Unanswered::Budget("there is no answer".to_owned()));
    Ok(replies
        .into_iter()
        .map(|reply| reply.unwrap_or_else(missing))
        .collect())
}

/// Has the policy of a record asked again.
pub(super) fn why(text: &Text, line: &str, time: Duration) -> Result<Why, String> {
    let text = String::from_utf8(text.to_json()?).map_err(|error| error.to_string())?;
    let job = Job {
        material: Material::default(),
        lines: false,
        work: Work::Why(text, line.to_owned(), time),
    };
    let mut told = Err("there is no answer".to_owned());
    let fate = converse(&job, |event| {
        if let Event::Why(why) = event {
            told = why.map(|why| *why);
        }
        time + GRACE
    });
    match fate {
        Ok(()) => told,
        Err(fate) => Err(fate.words()),
    }
}
