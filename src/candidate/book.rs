//! Which candidates went back. The same object in every configuration of a process, and a file for the
//! next one, if the configuration names one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::cohort::Key;
use super::state::State;
use crate::kept;
use crate::schema::Compile;

/// Most candidates that are remembered: those that are gone from the configuration as well.
const MAX_ENTRIES: usize = 1_000;
/// Largest file.
const MAX_FILE: u64 = 4 << 20;

/// A candidate that went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Back {
    /// The text that it had: another one is tried again.
    pub text: String,
    /// When, in seconds since 1970.
    pub since: u64,
    /// `denials`, `permits`, `errors`; `order` when somebody sent it back, `unknown` when nobody knows.
    pub edge: String,
    /// A sentence.
    pub why: String,
}

/// All that went back.
#[derive(Debug)]
pub struct Book {
    path: Option<PathBuf>,
    pages: Mutex<Pages>,
    /// Taken while it is written, so that the newest is what stays.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct Pages {
    back: BTreeMap<String, Back>,
    key: Key,
    /// Why it is not known what was written here: whoever would decide does not.
    unknown: Option<String>,
    /// Why it could not be written the last time.
    fault: Option<String>,
    /// The candidates of the configuration in force.
    named: BTreeMap<String, Weak<State>>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// By which sides are drawn, 32 hex digits: nobody changes sides when the gateway is started anew.
    key: String,
    back: BTreeMap<String, Back>,
}

/// The key that a secret stands for.
pub(super) fn key_of(secret: &[u8]) -> Key {
    let digest = digest::digest(&digest::SHA256, secret);
    let mut halves = digest.as_ref().chunks_exact(8);
    let mut half = || {
        let bytes = halves.next().and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    };
    (half(), half())
}

impl Default for Book {
    /// Of this process alone.
    fn default() -> Self {
        Self {
            path: None,
            pages: Mutex::new(Pages {
                back: BTreeMap::new(),
                key: rand::random(),
                unknown: None,
                fault: None,
                named: BTreeMap::new(),
            }),
            writing: Mutex::default(),
        }
    }
}

impl Book {
    /// The book of a configuration that keeps it at `path`: the one before if that is the same, or with
    /// what that has in it. Blocks.
    pub fn open(path: Option<&Path>, previous: Option<&Arc<Self>>, cx: &mut Compile) -> Arc<Self> {
        let path = path.map(|path| cx.unwatched(path));
        if let Some(previous) = previous {
            if previous.path == path {
                return Arc::clone(previous);
            }
            let before = previous.pages();
            return Self::of(
                path,
                before.back.clone(),
                before.key,
                before.unknown.clone(),
            );
        }
        let fresh = rand::random();
        let Some(file) = &path else {
            return Self::of(None, BTreeMap::new(), fresh, None);
        };
        match read(file) {
            Ok(None) => Self::of(path, BTreeMap::new(), fresh, None),
            Ok(Some((key, back))) => Self::of(path, back, key, None),
            Err(why) => {
                cx.at("candidate_state", |cx| {
                    cx.warning(
                        format!("what is kept of candidates cannot be read: {why}"),
                        "no candidate decides until somebody resumes it; the file is written anew then",
                    );
                });
                Self::of(path, BTreeMap::new(), fresh, Some(why))
            }
        }
    }

    fn of(
        path: Option<PathBuf>,
        back: BTreeMap<String, Back>,
        key: Key,
        unknown: Option<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            path,
            pages: Mutex::new(Pages {
                back,
                key,
                unknown,
                fault: None,
                named: BTreeMap::new(),
            }),
            writing: Mutex::new(()),
        })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key(&self) -> Key {
        self.pages().key
    }

    /// What is written of a candidate with this text; `now` is in seconds since 1970.
    pub(super) fn entry(&self, name: &str, text: &str, now: u64) -> Option<Back> {
        let pages = self.pages();
        match (pages.back.get(name), &pages.unknown) {
            (Some(back), _) => Some(back.clone()).filter(|back| back.text == text),
            (None, Some(why)) => Some(Back {
                text: text.to_owned(),
                since: now,
                edge: "unknown".to_owned(),
                why: format!("nobody knows whether it went back: {why}"),
            }),
            (None, None) => None,
        }
    }

    pub(super) fn put(&self, name: &str, back: Back) {
        let mut pages = self.pages();
        if pages.back.len() >= MAX_ENTRIES
            && !pages.back.contains_key(name)
            && let Some(oldest) = pages.back.iter().min_by_key(|(_, back)| back.since)
        {
            let oldest = oldest.0.clone();
            pages.back.remove(&oldest);
        }
        pages.back.insert(name.to_owned(), back);
    }

    pub(super) fn strike(&self, name: &str) {
        self.pages().back.remove(name);
    }

    /// The candidates in force are these. Those whose place they take are no longer judged: what they
    /// would find out is nobody's any more. Gives the names of those that are gone.
    pub(super) fn take_over(&self, named: BTreeMap<String, Weak<State>>) -> Vec<String> {
        let before = std::mem::replace(&mut self.pages().named, named.clone());
        let mut gone = Vec::new();
        for (name, state) in before {
            let now = named.get(&name);
            if now.is_none() {
                gone.push(name);
            }
            if now.is_none_or(|now| !now.ptr_eq(&state))
                && let Some(state) = state.upgrade()
            {
                state.let_go();
            }
        }
        gone
    }

    /// A configuration is in force with these candidates and their texts, each with what it found here.
    /// What is written of other texts is struck out. Whether anything has to be written.
    pub(super) fn settle<'c>(
        &self,
        candidates: impl Iterator<Item = (&'c str, &'c str, Option<Back>)>,
    ) -> bool {
        let mut pages = self.pages();
        // The key as well, when nothing was there.
        let mut changed = self.path.as_deref().is_some_and(|path| !path.exists());
        for (name, text, found) in candidates {
            match (pages.back.get(name), found) {
                (Some(back), _) if back.text != text => {
                    pages.back.remove(name);
                    changed = true;
                }
                (None, Some(found)) => {
                    pages.back.insert(name.to_owned(), found);
                    changed = true;
                }
                (Some(_), _) | (None, None) => {}
            }
        }
        // From here on it is known by name.
        changed | pages.unknown.take().is_some()
    }

    /// Writes it, if it is kept in a file. Blocks.
    pub(super) fn save(&self) {
        let Some(path) = &self.path else {
            return;
        };
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let file = {
            let pages = self.pages();
            File {
                version: 1,
                key: format!("{:016x}{:016x}", pages.key.0, pages.key.1),
                back: pages.back.clone(),
            }
        };
        let written = serde_json::to_vec_pretty(&file)
            .map_err(std::io::Error::other)
            .and_then(|bytes| kept::write(path, &bytes));
        let fault = written.err().map(|error| error.to_string());
        if let Some(error) = &fault {
            tracing::warn!(file = %path.display(), %error, "what became of candidates cannot be kept");
        }
        self.pages().fault = fault;
    }

    /// Why the last change is not kept for the next process; `None` when it is, or need not be.
    pub fn fault(&self) -> Option<String> {
        let fault = self.pages().fault.clone()?;
        let path = self.path.as_deref()?;
        Some(format!("candidate_state {}: {fault}", path.display()))
    }

    /// Whether it outlives the process.
    pub fn is_kept(&self) -> bool {
        self.path.is_some()
    }
}

type Read = (Key, BTreeMap<String, Back>);

fn read(path: &Path) -> Result<Option<Read>, String> {
    let bytes = kept::read(path, MAX_FILE).map_err(|error| error.to_string())?;
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let file: File = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if file.version != 1 {
        return Err(format!("it is of version {}", file.version));
    }
    if file.back.len() > MAX_ENTRIES {
        return Err(format!("it has more than {MAX_ENTRIES} entries"));
    }
    let half = |range: std::ops::Range<usize>| {
        let digits = file.key.get(range)?;
        u64::from_str_radix(digits, 16).ok()
    };
    match (file.key.len(), half(0..16), half(16..32)) {
        (32, Some(first), Some(second)) => Ok(Some(((first, second), file.back))),
        _ => Err("its key is not 32 hex digits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn cx(folder: &Path) -> Compile {
        Compile::new(&folder.join("gateway.yaml"), Arc::new(Metrics::default()))
    }

    fn back(text: &str) -> Back {
        Back {
            text: text.to_owned(),
            since: 7,
            edge: "denials".to_owned(),
            why: "it denied".to_owned(),
        }
    }

    #[test]
    fn what_went_back_is_known_to_the_next_process_and_so_is_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = Some(Path::new("state/candidates.json"));
        let book = Book::open(path, None, &mut cx(folder.path()));
        book.put("next", back("aa"));
        book.save();
        assert_eq!(book.fault(), None);
        let again = Book::open(path, None, &mut cx(folder.path()));
        assert_eq!(again.entry("next", "aa", 9), Some(back("aa")));
        assert_eq!(again.entry("next", "bb", 9), None, "another text is tried");
        assert_eq!(again.key(), book.key());
        // A reload keeps the object; one that names another file, what is in it.
        let same = Book::open(path, Some(&again), &mut cx(folder.path()));
        assert!(Arc::ptr_eq(&same, &again));
        let moved = Book::open(None, Some(&again), &mut cx(folder.path()));
        assert_eq!(moved.entry("next", "aa", 9), Some(back("aa")));
        assert_eq!(moved.key(), book.key());
    }

    #[test]
    fn a_file_that_cannot_be_read_holds_everybody_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("candidates.json");
        let path = Some(Path::new("candidates.json"));
        for text in [
            "{",
            "{}",
            r#"{"version": 2, "key": "", "back": {}}"#,
            r#"{"version": 1, "key": "0", "back": {}}"#,
        ] {
            kept::write(&file, text.as_bytes()).unwrap();
            let mut cx = cx(folder.path());
            let book = Book::open(path, None, &mut cx);
            assert!(
                cx.problems()[0].message.contains("cannot be read"),
                "{text}"
            );
            let found = book.entry("next", "aa", 9).expect(text);
            assert_eq!(found.edge, "unknown");
            assert!(book.settle([("next", "aa", Some(found))].into_iter()));
            book.strike("next");
            assert_eq!(book.entry("next", "aa", 9), None, "resumed for good");
        }
    }

    #[test]
    fn another_text_strikes_the_entry_out_and_entries_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let book = Book::open(None, None, &mut cx(folder.path()));
        book.put("next", back("aa"));
        assert!(!book.settle([("next", "aa", Some(back("aa")))].into_iter()));
        assert!(book.settle([("next", "bb", None)].into_iter()));
        assert_eq!(book.entry("next", "aa", 9), None);
        for number in 0..MAX_ENTRIES + 10 {
            book.put(&format!("c{number}"), back("aa"));
        }
        assert_eq!(book.pages().back.len(), MAX_ENTRIES);
    }
}
