//! Where the gate runs: in a process of its own, which a policy may bring down.
//!
//! A stack that overflows or memory that runs out takes the whole process with it. The gateway
//! therefore starts itself once more with [`GATE_ARGUMENT`], hands over the job on standard input
//! and reads the report from standard output. Where there is no such binary (tests, users of the
//! library) the gate runs on a thread with a large stack.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::authz::gate::{Job, Report, judge};
use crate::authz::source::remark::Remark;

/// The hidden subcommand that runs [`gate_child`].
pub const GATE_ARGUMENT: &str = "policy-gate";
/// Longest time for judging one policy.
pub const GATE_TIME: Duration = Duration::from_secs(20);
/// The stack a policy must do with in the gate: less than the 2 MiB of a worker's thread, so that
/// what passed here has room there.
const CHILD_STACK: usize = 1536 * 1024;
/// The stack of the gate inside our own process, where an overflow would be fatal.
const OWN_STACK: usize = 64 * 1024 * 1024;
/// Longest job or report, bytes.
const MAX_MESSAGE: u64 = 256 * 1024 * 1024;
/// How many reports are remembered.
const MAX_REMEMBERED: usize = 64;

static GATE_PROGRAM: OnceLock<PathBuf> = OnceLock::new();
static REMEMBERED: LazyLock<Mutex<Vec<(String, Report)>>> = LazyLock::new(Mutex::default);

/// Has policies judged in a process of their own: `program policy-gate`, which must call
/// [`gate_child`]. The first call decides for the life of the process.
pub fn set_gate_program(program: PathBuf) {
    let _ = GATE_PROGRAM.set(program);
}

/// The other side: reads one job, judges it, writes one report. Returns the exit code.
pub fn gate_child(stdin: impl Read, mut stdout: impl Write) -> i32 {
    let mut text = Vec::new();
    if stdin.take(MAX_MESSAGE).read_to_end(&mut text).is_err() {
        return 2;
    }
    let Ok(job) = serde_json::from_slice::<Job>(&text) else {
        return 2;
    };
    let judged = thread::Builder::new()
        .stack_size(CHILD_STACK)
        .spawn(move || judge(&job))
        .map(thread::JoinHandle::join);
    let Ok(Ok(report)) = judged else {
        return 1;
    };
    let written = serde_json::to_vec(&report)
        .map_err(std::io::Error::from)
        .and_then(|text| stdout.write_all(&text))
        .and_then(|()| stdout.flush());
    i32::from(written.is_err())
}

/// Judges a job where it can do no harm; a report that is remembered for this digest is given again.
pub(in crate::authz) fn examine(job: &Job, digest: &str) -> Report {
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, report)) = remembered.iter().find(|(known, _)| known == digest) {
        return report.clone();
    }
    drop(remembered);
    let judged = match GATE_PROGRAM.get() {
        Some(program) => in_child(program, job, GATE_TIME),
        None => in_thread(job.clone(), GATE_TIME),
    };
    match judged {
        Ok(report) => {
            remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() >= MAX_REMEMBERED {
                remembered.remove(0);
            }
            remembered.push((digest.to_owned(), report.clone()));
            report
        }
        // Not remembered: the machine may have been busy, and asking again is how one finds out.
        Err(fate) => {
            let file = job.modules.first().map_or("", |(file, _)| file.as_str());
            let (message, help) = fate.words(GATE_TIME);
            Report {
                remarks: vec![Remark::error(file, None, message, help)],
                engine: None,
            }
        }
    }
}

/// Why there is no report.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Aborted,
    Late,
    NotStarted(String),
}

impl Fate {
    fn words(&self, limit: Duration) -> (String, &'static str) {
        match self {
            Self::Aborted => (
                "the policy aborted the process that judged it".to_owned(),
                "it would have taken the gateway with it; look for what nests or grows without end",
            ),
            Self::Late => (
                format!(
                    "the policy used more than {} s before it could be judged",
                    limit.as_secs()
                ),
                "look for loops over loops, large literals, and tests that do not end",
            ),
            Self::NotStarted(why) => (
                format!("the process that judges policies did not start: {why}"),
                "the gateway must be able to start its own binary",
            ),
        }
    }
}

fn in_child(program: &Path, job: &Job, limit: Duration) -> Result<Report, Fate> {
    let not_started = |error: std::io::Error| Fate::NotStarted(error.to_string());
    let text = serde_json::to_vec(job).map_err(|error| Fate::NotStarted(error.to_string()))?;
    let mut child = Command::new(program)
        .arg(GATE_ARGUMENT)
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
    let (sender, receiver) = sync_channel(1);
    let reader = thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map(|stdout| stdout.take(MAX_MESSAGE).read_to_end(&mut answer));
        let _ = sender.send(read.map(|_| answer));
    });
    let answer = receiver.recv_timeout(limit);
    // Whoever has answered is done; whoever has not is ended.
    let _ = child.kill();
    let _ = child.wait();
    let _ = (writer.join(), reader.join());
    match answer {
        Ok(answer) => answer
            .and_then(|answer| serde_json::from_slice(&answer).ok())
            .ok_or(Fate::Aborted),
        Err(RecvTimeoutError::Timeout) => Err(Fate::Late),
        Err(RecvTimeoutError::Disconnected) => Err(Fate::Aborted),
    }
}

fn in_thread(job: Job, limit: Duration) -> Result<Report, Fate> {
    let (sender, receiver) = sync_channel(1);
    // A thread cannot be ended from outside: one that is late goes on by itself, and is not heard.
    thread::Builder::new()
        .name("policy-gate".to_owned())
        .stack_size(OWN_STACK)
        .spawn(move || {
            let _ = sender.send(judge(&job));
        })
        .map_err(|error| Fate::NotStarted(error.to_string()))?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => Fate::Late,
        RecvTimeoutError::Disconnected => Fate::Aborted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        Job {
            modules: vec![("p.rego".to_owned(), text.to_owned())],
            data: "{}".to_owned(),
            entrypoint: "data.p.allow".to_owned(),
            input: crate::authz::InputDocument::default(),
            instructions: 100_000,
            errors: Default::default(),
            seed: 1,
        }
    }

    #[test]
    fn the_child_answers_with_the_report_that_the_thread_gives() {
        let job = job("package p\nallow if input.identity.subject == \"alice\"");
        let mut answer = Vec::new();
        let text = serde_json::to_vec(&job).unwrap();
        assert_eq!(gate_child(text.as_slice(), &mut answer), 0);
        let report: Report = serde_json::from_slice(&answer).unwrap();
        assert!(report.engine.is_some(), "{report:?}");
        assert_eq!(Ok(report), in_thread(job, GATE_TIME));
    }

    #[test]
    fn the_deepest_policy_that_the_checks_let_pass_fits_the_childs_stack() {
        let rules: Vec<String> = (0..94).map(|i| format!("r{i} if r{}", i + 1)).collect();
        let nested = format!("{}1{}", "[1, (".repeat(7), ")]".repeat(7));
        let text = format!(
            "package p\n{}\nr94 if input.request\nallow if {{ r0; {nested} }}",
            rules.join("\n")
        );
        let mut answer = Vec::new();
        let text = serde_json::to_vec(&job(&text)).unwrap();
        assert_eq!(gate_child(text.as_slice(), &mut answer), 0);
        let report: Report = serde_json::from_slice(&answer).unwrap();
        assert!(report.engine.is_some(), "{report:?}");
    }

    #[test]
    fn a_child_that_reads_no_job_fails() {
        assert_eq!(gate_child(&b"{}"[..], Vec::new()), 2);
    }

    #[test]
    fn a_process_that_dies_is_a_refusal_and_not_ours() {
        let job = job("package p\nallow := true");
        let died = in_child(Path::new("/bin/false"), &job, GATE_TIME);
        assert_eq!(died, Err(Fate::Aborted));
        let (message, _) = Fate::Aborted.words(GATE_TIME);
        assert_eq!(message, "the policy aborted the process that judged it");
        let missing = in_child(Path::new("/nonexistent"), &job, GATE_TIME);
        assert!(matches!(missing, Err(Fate::NotStarted(_))));
    }

    #[test]
    fn a_process_that_does_not_answer_is_ended() {
        // `yes policy-gate` writes without end and never closes its output.
        let job = job("package p\nallow := true");
        let late = in_child(Path::new("/usr/bin/yes"), &job, Duration::from_millis(50));
        assert_eq!(late, Err(Fate::Late));
        let (message, _) = Fate::Late.words(Duration::from_secs(20));
        assert!(message.contains("used more than 20 s"));
    }
}
