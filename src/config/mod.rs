//! `gateway.yaml`: the whole document, from text to [`Snapshot`].
//!
//! [`load`] goes in three steps, and each reports everything it finds:
//! text to shape (`index`: positions, duplicate keys, bombs), shape to [`Document`] (`read`, entry
//! by entry; `portions`, thousands of routes one by one), document to [`Snapshot`] (`compile`, each room its own part). No section is parsed
//! here; its meaning lives in the room that owns it.

mod apart;
mod bare;
mod beside;
mod compile;
mod document;
mod index;
mod lint;
mod portions;
mod read;
pub mod reload;
mod render;
mod salvage;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use apart::{read_document, read_typed};
pub use bare::{load_for_questions, load_with_candidate};
pub use beside::beside;
pub use document::Document;
pub use render::{Style, render};

use crate::admin::Admin;
use crate::metrics::Metrics;
use crate::schema::{Compile, ContentDigest, Problem, Severity, digest_files};
use crate::snapshot::Snapshot;

/// The largest document, in bytes.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// A configuration that loads.
#[derive(Debug)]
pub struct Loaded {
    /// What to put in force.
    pub snapshot: Snapshot,
    /// The document it was compiled from, defaults filled in; some of it counts at start only.
    pub document: Arc<Document>,
    /// The admin listener, opened at start.
    pub admin: Admin,
    /// What the operator should know all the same.
    pub warnings: Vec<Problem>,
}

/// Loads the document in `file` and everything it names. Parts that did not change are taken over
/// from `previous`, with their counters, pools and keys.
///
/// # Errors
/// All problems at once, in the order of the file; at least one of them is an error.
pub fn load(
    file: &Path,
    previous: Option<&Snapshot>,
    metrics: &Arc<Metrics>,
) -> Result<Loaded, Vec<Problem>> {
    if previous.is_none() {
        // Where reloads will run, which then find its memory; here if that cannot be.
        let (path, counts) = (file.to_owned(), Arc::clone(metrics));
        if let Some((result, _)) = beside::before(move || attempt(&path, None, &counts)) {
            return result;
        }
    }
    attempt(file, previous, metrics).0
}

/// [`load`], and the files that took part whether or not it succeeded.
fn attempt(
    file: &Path,
    previous: Option<&Snapshot>,
    metrics: &Arc<Metrics>,
) -> (Result<Loaded, Vec<Problem>>, Vec<PathBuf>) {
    let bytes = match document_bytes(file) {
        Ok(bytes) => bytes,
        Err(message) => {
            let help = (previous.is_none() && !file.exists())
                .then(|| "name the file with `--config FILE`, or try `portcullis dev`".to_owned());
            let problem = Problem {
                severity: Severity::Error,
                file: file.to_path_buf(),
                line: None,
                column: None,
                path: String::new(),
                message,
                help,
            };
            return (Err(vec![problem]), vec![file.to_path_buf()]);
        }
    };
    let mut cx = Compile::new(file, Arc::clone(metrics));
    if let Some(previous) = previous {
        cx = cx.with_epoch(Arc::clone(&previous.epoch));
    }
    let loaded = load_bytes(file, &bytes, previous, &mut cx);
    let (mut problems, named) = cx.finish();
    let files = std::iter::once(file.to_path_buf()).chain(named).collect();
    // Problems without a position, of other files, come last; equal positions keep their order.
    problems.sort_by_key(|problem| {
        (
            problem.file != file,
            problem.line.unwrap_or(usize::MAX),
            problem.column,
        )
    });
    let broken = problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    let result = match loaded {
        Some(compiled) if !broken => Ok(Loaded {
            snapshot: compiled.snapshot,
            document: compiled.document,
            admin: compiled.admin,
            warnings: problems,
        }),
        _ => Err(problems),
    };
    (result, files)
}

fn load_bytes(
    file: &Path,
    bytes: &[u8],
    previous: Option<&Snapshot>,
    cx: &mut Compile,
) -> Option<compile::Compiled> {
    let text = read::text(file, bytes, cx)?;
    let said = read::document(file, text, cx)?;
    compile::compile(said, file, bytes, previous, cx)
}

/// The revision of what is on disk now, to tell whether a load would change anything. `files` are
/// those of the snapshot in force.
///
/// # Errors
/// A sentence, when the document itself cannot be read.
pub fn revision_on_disk(file: &Path, files: &[PathBuf]) -> Result<String, String> {
    let bytes = document_bytes(file)?;
    let named = files
        .iter()
        .filter(|named| *named != file)
        .map(|named| (named.as_path(), None));
    Ok(revision(&bytes, digest_files(named)))
}

fn revision(document: &[u8], files: ContentDigest) -> String {
    let both = [ContentDigest::of(document).as_bytes(), files.as_bytes()].concat();
    ContentDigest::of(&both).to_string()
}

fn document_bytes(file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", file.display());
    // Asked before opening: opening a pipe would wait for its other end.
    let about = std::fs::metadata(file).map_err(cannot)?;
    if !about.is_file() {
        return Err(format!(
            "cannot read {}: it is not a regular file",
            file.display()
        ));
    }
    // One more, or finding the end would double it.
    let size = about.len().min(MAX_DOCUMENT) + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    File::open(file)
        .and_then(|open| open.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_DOCUMENT {
        return Err(format!(
            "{} is larger than {} MiB",
            file.display(),
            MAX_DOCUMENT >> 20
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
