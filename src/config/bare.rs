//! A configuration without what is not for everybody: certificates, keys and secrets.
//!
//! Who asks what a configuration would do, in a checkout or in CI, has the document and the policies, and
//! seldom the keys. Nothing that is loaded this way can serve: it answers questions about access, which
//! none of these parts decide.

use std::path::Path;
use std::sync::Arc;

use super::apart::bytes;
use super::document::Document;
use super::read::Said;
use super::{Loaded, compile, load, read};
use crate::admin::AdminConfig;
use crate::audit::AuditConfig;
use crate::metrics::Metrics;
use crate::revocation::RevocationConfig;
use crate::schema::{Compile, Problem, Severity, known_names};
use crate::telemetry::TelemetryConfig;

/// Loads for questions: the whole configuration where that can be, else without what only a running
/// gateway needs. Comes with what was left out. [`Loaded::document`] is what the file says.
///
/// # Errors
/// All problems, as of [`load`].
pub fn load_for_questions(
    file: &Path,
    metrics: &Arc<Metrics>,
) -> Result<(Loaded, Vec<Problem>), Vec<Problem>> {
    let problems = match load(file, None, metrics) {
        Ok(loaded) => return Ok((loaded, Vec::new())),
        Err(problems) => problems,
    };
    bare_instead(problems, of_parts(file, None, true, metrics))
}

/// [`load_for_questions`] of the configuration as it would be with a candidate in the place of its policy.
///
/// # Errors
/// All problems, as of [`load`]; also when there is no such candidate.
pub fn load_with_candidate(
    file: &Path,
    candidate: &str,
    metrics: &Arc<Metrics>,
) -> Result<(Loaded, Vec<Problem>), Vec<Problem>> {
    match of_parts(file, Some(candidate), false, metrics) {
        Ok(loaded) => Ok((loaded, Vec::new())),
        Err(problems) => bare_instead(problems, of_parts(file, Some(candidate), true, metrics)),
    }
}

/// What loads without keys, with the problems that the whole has.
fn bare_instead(
    problems: Vec<Problem>,
    bare: Result<Loaded, Vec<Problem>>,
) -> Result<(Loaded, Vec<Problem>), Vec<Problem>> {
    match bare {
        Ok(loaded) => {
            let is_error = |problem: &Problem| problem.severity == Severity::Error;
            Ok((loaded, problems.into_iter().filter(is_error).collect()))
        }
        Err(_) => Err(problems),
    }
}

fn of_parts(
    file: &Path,
    candidate: Option<&str>,
    stripped: bool,
    metrics: &Arc<Metrics>,
) -> Result<Loaded, Vec<Problem>> {
    let bytes = bytes(file)?;
    let mut cx = Compile::new(file, Arc::clone(metrics));
    let compiled = read::text(file, &bytes, &mut cx)
        .and_then(|text| read::document(file, text, &mut cx))
        .and_then(|mut said| {
            let candidates = said.candidates.good.clone();
            if let Some(candidate) = candidate {
                stand_in(&mut said, candidate, &mut cx)?;
            }
            let whole = Document {
                candidates,
                ..said.whole()
            };
            if stripped {
                strip(&mut said, file.parent().unwrap_or(Path::new("")));
            }
            Some((compile::compile(said, file, &bytes, None, &mut cx)?, whole))
        });
    let (problems, _) = cx.finish();
    let broken = |problem: &Problem| problem.severity == Severity::Error;
    match compiled {
        Some((compiled, whole)) if !problems.iter().any(broken) => Ok(Loaded {
            snapshot: compiled.snapshot,
            document: Arc::new(whole),
            admin: compiled.admin,
            warnings: problems,
        }),
        _ => Err(problems),
    }
}

/// Puts a candidate in the place of its policy, and leaves out all others.
fn stand_in(said: &mut Said, candidate: &str, cx: &mut Compile) -> Option<()> {
    let block = said.candidates.good.remove(candidate);
    let Some(block) = block else {
        cx.at("candidates", |cx| {
            let shown = candidate.escape_default();
            let names = said.candidates.names.iter().map(String::as_str);
            let help = known_names(candidate, names);
            cx.problem_help(format!("there is no candidate `{shown}`"), help);
        });
        return None;
    };
    let Some(policy) = said.policies.good.get_mut(&block.of) else {
        cx.at("candidates", |cx| {
            cx.at(candidate, |cx| {
                let of = block.of.escape_default();
                cx.problem(format!("there is no policy `{of}`, or it cannot be used"));
            });
        });
        return None;
    };
    *policy = block.policy(policy);
    said.candidates.good.clear();
    said.candidates.names.clear();
    Some(())
}

fn strip(said: &mut Said, folder: &Path) {
    let settings = &mut said.settings;
    settings.admin = AdminConfig::default();
    settings.audit = AuditConfig::default();
    settings.telemetry = TelemetryConfig::default();
    settings.revocation = RevocationConfig::default();
    settings.candidate_state = None;
    for candidate in said.candidates.good.values_mut() {
        if let Some(enforce) = &mut candidate.enforce {
            enforce.key = None;
        }
    }
    if let Some(assertion) = &mut settings.identity.assertion {
        assertion.key = None;
    }
    for listener in said.listeners.good.values_mut() {
        if listener.tls.take().is_some() {
            listener.plaintext = true;
        }
    }
    for issuer in said.issuers.good.values_mut() {
        issuer.authorities.clear();
        issuer.keys.last_known_good = None;
        let missing = |file: &std::path::PathBuf| !folder.join(file).exists();
        if issuer.keys.file.as_ref().is_some_and(missing) {
            issuer.keys.file = None;
            issuer.keys.discovery = true;
        }
    }
    for upstream in said.upstreams.good.values_mut() {
        upstream.tls = Default::default();
    }
}
