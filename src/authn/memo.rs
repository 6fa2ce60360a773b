//! A place where a later room notes what it found out about an identity.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many keys fit.
pub const KEYS: usize = 8;

/// What `revocation` remembers of an identity, so that most requests of a known token cost it two
/// reads of memory: by which keys the identity may be revoked, and as of when it was not.
#[derive(Debug, Default)]
pub struct Memo {
    keys: OnceLock<[u128; KEYS]>,
    clean: AtomicU64,
}

impl Memo {
    /// The keys, made at the first call.
    pub fn keys(&self, make: impl FnOnce() -> [u128; KEYS]) -> &[u128; KEYS] {
        self.keys.get_or_init(make)
    }

    /// Whether nothing was found as of this version, which is never zero.
    pub fn is_clean(&self, version: u64) -> bool {
        self.clean.load(Ordering::Relaxed) == version
    }

    /// Nothing was found as of this version.
    pub fn set_clean(&self, version: u64) {
        self.clean.store(version, Ordering::Relaxed);
    }
}
