//! How far a sink got: a small file of its own for each, beside the ledger.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::audit::ledger::Position;
use crate::kept;

/// The folder of all cursors, in the ledger's.
const FOLDER: &str = "ship";

/// Most bytes of a cursor.
const LARGEST: u64 = 4096;

/// Most cursors of a ledger that are looked at when it is asked for all.
const MOST: usize = 64;

/// The file of a sink.
pub(super) fn path_of(ledger: &Path, sink: &str) -> PathBuf {
    ledger.join(FOLDER).join(format!("{sink}.json"))
}

/// Where a sink goes on; `None` when it was never shipped to. When there is a cursor and nobody knows
/// what it says, that is before the first record: everything is shipped once more.
pub(super) fn read(path: &Path) -> Option<Position> {
    let bytes = match kept::read(path, LARGEST) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::error!(cursor = %path.display(), %error,
                "it is not known how far audit records were shipped: they are shipped once more");
            return Some(Position::default());
        }
    };
    let position = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        tracing::error!(cursor = %path.display(),
            "this says nothing of how far audit records were shipped: they are shipped once more");
        Position::default()
    });
    Some(position)
}

/// Every sink that has a cursor, by name, with how far it got; 0 when that cannot be read.
pub(super) fn all(ledger: &Path) -> Vec<(String, u64)> {
    let Ok(files) = fs::read_dir(ledger.join(FOLDER)) else {
        return Vec::new();
    };
    let mut all: Vec<(String, u64)> = files
        .filter_map(|file| {
            let path = file.ok()?.path();
            let name = path.file_stem()?.to_str()?.to_owned();
            let is_one = path.extension()? == "json" && !name.starts_with('.');
            let bytes = kept::read(&path, LARGEST).ok().flatten();
            let position = bytes.and_then(|bytes| serde_json::from_slice::<Position>(&bytes).ok());
            is_one.then(|| (name, position.unwrap_or_default().record))
        })
        .take(MOST)
        .collect();
    all.sort();
    all
}

/// Keeps it, so that a crash leaves this one or the one before.
///
/// # Errors
/// Why it could not be kept.
pub(super) fn write(path: &Path, position: &Position) -> io::Result<()> {
    kept::write(path, &serde_json::to_vec(position)?)
}
