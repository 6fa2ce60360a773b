//! A configuration without what is not for everybody: certificates, keys and secrets.
//!
//! Who asks what a configuration would do, in a checkout or in CI, has the document and the policies, and
//! seldom the keys. Nothing that is loaded this way can serve: it answers questions about access, which
//! none of these parts decide.

use std::path::Path;
use std::sync::Arc;

use super::read::Said;
use super::{Loaded, compile, document_bytes, load, read};
use crate::admin::AdminConfig;
use crate::audit::AuditConfig;
use crate::metrics::Metrics;
use crate::revocation::RevocationConfig;
use crate::schema::{Compile, Problem, Severity};
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
    match without_keys(file, metrics) {
        Some(loaded) => {
            let is_error = |problem: &Problem| problem.severity == Severity::Error;
            Ok((loaded, problems.into_iter().filter(is_error).collect()))
        }
        None => Err(problems),
    }
}

fn without_keys(file: &Path, metrics: &Arc<Metrics>) -> Option<Loaded> {
    let bytes = document_bytes(file).ok()?;
    let mut cx = Compile::new(file, Arc::clone(metrics));
    let text = read::text(file, &bytes, &mut cx)?;
    let mut said = read::document(file, text, &mut cx)?;
    let mut whole = said.settings.clone();
    said.listeners.good.clone_into(&mut whole.listeners);
    said.issuers.good.clone_into(&mut whole.issuers);
    said.policies.good.clone_into(&mut whole.policies);
    said.limits.good.clone_into(&mut whole.limits);
    said.upstreams.good.clone_into(&mut whole.upstreams);
    whole.routes.clone_from(&said.routes);
    strip(&mut said, file.parent().unwrap_or(Path::new("")));
    let compiled = compile::compile(said, file, &bytes, None, &mut cx)?;
    let (problems, _) = cx.finish();
    if problems
        .iter()
        .any(|problem| problem.severity == Severity::Error)
    {
        return None;
    }
    Some(Loaded {
        snapshot: compiled.snapshot,
        document: whole,
        admin: compiled.admin,
        warnings: problems,
    })
}

fn strip(said: &mut Said, folder: &Path) {
    let settings = &mut said.settings;
    settings.admin = AdminConfig::default();
    settings.audit = AuditConfig::default();
    settings.telemetry = TelemetryConfig::default();
    settings.revocation = RevocationConfig::default();
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
