//! Reading without compiling: the document alone, and other files that are written like it.

use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::document::Document;
use super::index;
use super::{document_bytes, read, salvage};
use crate::metrics::Metrics;
use crate::schema::{Compile, Placed, Problem, Severity};

/// What the document in `file` says. Nothing that it names is read, so that it may be asked for its
/// policies while one of them does not go live.
///
/// # Errors
/// All problems of its text.
pub fn read_document(file: &Path) -> Result<Document, Vec<Problem>> {
    let bytes = bytes(file)?;
    let mut cx = Compile::new(file, Arc::new(Metrics::default()));
    let said =
        read::text(file, &bytes, &mut cx).and_then(|text| read::document(file, text, &mut cx));
    let (problems, _) = cx.finish();
    let broken = |problem: &Problem| problem.severity == Severity::Error;
    match said {
        Some(said) if !problems.iter().any(broken) => {
            let mut document = said.settings;
            document.listeners = said.listeners.good;
            document.issuers = said.issuers.good;
            document.policies = said.policies.good;
            document.candidates = said.candidates.good;
            document.limits = said.limits.good;
            document.upstreams = said.upstreams.good;
            document.routes = said.routes;
            Ok(document)
        }
        _ => Err(problems),
    }
}

/// Another file in YAML, by the rules of the configuration: unknown keys are refused with a suggestion,
/// and every problem has its place. Comes with the places of its parts (`cases[3].expect`).
///
/// # Errors
/// All problems at once.
pub fn read_typed<T: DeserializeOwned + JsonSchema>(
    file: &Path,
) -> Result<(T, Placed), Vec<Problem>> {
    let bytes = bytes(file)?;
    let mut cx = Compile::new(file, Arc::new(Metrics::default()));
    let read = read::text(file, &bytes, &mut cx).and_then(|text| {
        let value = read::value(file, text, &mut cx)?;
        let read = salvage::read::<T>(value, &mut cx).clean();
        Some((read?, Placed::new(text.to_owned(), index::positions)))
    });
    let (problems, _) = cx.finish();
    match read {
        Some(read) if problems.is_empty() => Ok(read),
        _ => Err(problems),
    }
}

pub(super) fn bytes(file: &Path) -> Result<Vec<u8>, Vec<Problem>> {
    document_bytes(file).map_err(|message| {
        vec![Problem {
            severity: Severity::Error,
            file: file.to_path_buf(),
            line: None,
            column: None,
            path: String::new(),
            message,
            help: None,
        }]
    })
}
