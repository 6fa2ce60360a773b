//! How far a sink got: a small file of its own for each, beside the ledger.

use std::io;
use std::path::{Path, PathBuf};

use crate::audit::ledger::Position;
use crate::kept;

/// The folder of all cursors, in the ledger's.
const FOLDER: &str = "ship";

/// Most bytes of a cursor.
const LARGEST: u64 = 4096;

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

/// Keeps it, so that a crash leaves this one or the one before.
///
/// # Errors
/// Why it could not be kept.
pub(super) fn write(path: &Path, position: &Position) -> io::Result<()> {
    kept::write(path, &serde_json::to_vec(position)?)
}
