//! What was read of a body before its request was judged.

use std::fmt;

use bytes::Bytes;

/// The begin of a body, or all of it, in memory of its own.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// What was read.
    pub bytes: Bytes,
    /// Whether that is all there is.
    pub whole: bool,
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bodies are never written anywhere.
        f.debug_struct("Excerpt")
            .field("length", &self.bytes.len())
            .field("whole", &self.whole)
            .finish()
    }
}
