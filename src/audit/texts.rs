//! The policies behind decisions: their texts by revision, for whoever asks why.
//!
//! A record names the revision that decided, and the reason is found by asking that text again. So the
//! texts of this process are kept in memory, and where records go to a ledger also beside it, in
//! `policies/REVISION.json`: whoever reads the records of last month has the policies of last month.
//! Both are bounded; what is in force stays.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::SystemTime;

use crate::authz::Policy;
use crate::authz::workbench::why::Text;
use crate::kept;

/// Most texts in memory that are not in force any more, and most bytes of them together.
const MAX_OLD: usize = 32;
const MAX_OLD_BYTES: usize = 64 << 20;

/// Most files beside a ledger, most bytes of one, and of all that are not in force together.
const MAX_FILES: usize = 512;
const MAX_FILE: u64 = 64 << 20;
const MAX_FOLDER: u64 = 1 << 30;

/// The folder within the ledger's.
const FOLDER: &str = "policies";

/// Texts of policies.
#[derive(Debug, Default)]
pub(super) struct Texts(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    in_force: Vec<Arc<Text>>,
    /// The oldest first, with their bytes.
    old: VecDeque<(Arc<Text>, usize)>,
    folder: Option<PathBuf>,
}

impl Texts {
    /// These policies are in force now; the others become old.
    pub(super) fn in_force<'p>(
        self: &Arc<Self>,
        policies: impl Iterator<Item = &'p Arc<Policy>>,
        ledger: Option<&Path>,
    ) {
        let mut shelf = self.locked();
        let before = std::mem::take(&mut shelf.in_force);
        let mut new = Vec::new();
        for policy in policies {
            let (name, revision) = (&policy.decided_by.policy, &policy.decided_by.revision);
            let known = before.iter().find(|text| is(text, name, revision));
            match known {
                Some(text) => shelf.in_force.push(Arc::clone(text)),
                None => {
                    if let Some(text) = policy.to_explain() {
                        let text = Arc::new(text);
                        new.push(Arc::clone(&text));
                        shelf.in_force.push(text);
                    }
                }
            }
        }
        let folder = ledger.map(|ledger| ledger.join(FOLDER));
        if folder != shelf.folder {
            new.clone_from(&shelf.in_force);
            shelf.folder.clone_from(&folder);
        }
        let gone: Vec<Arc<Text>> = before
            .into_iter()
            .filter(|text| !shelf.in_force.iter().any(|now| Arc::ptr_eq(now, text)))
            .collect();
        drop(shelf);
        if gone.is_empty() && (new.is_empty() || folder.is_none()) {
            return;
        }
        // To weigh data and to write it takes time, which whoever reloads has no use for.
        let texts = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("policy-texts".to_owned())
            .spawn(move || {
                texts.shelve(gone);
                if let Some(folder) = folder {
                    new.iter().for_each(|text| write(&folder, text));
                    prune(&folder, &texts.names_in_force(), MAX_FOLDER);
                }
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "the texts of policies are not kept: no thread");
        }
    }

    /// Keeps what is no longer in force, within the bounds.
    fn shelve(&self, gone: Vec<Arc<Text>>) {
        for text in gone {
            let Some(bytes) = text.weight(MAX_OLD_BYTES) else {
                continue;
            };
            let mut shelf = self.locked();
            shelf.old.push_back((text, bytes));
            let all = |shelf: &Shelf| shelf.old.iter().map(|(_, bytes)| bytes).sum::<usize>();
            while shelf.old.len() > MAX_OLD || all(&shelf) > MAX_OLD_BYTES {
                shelf.old.pop_front();
            }
        }
    }

    /// The text of this revision of a policy. May read a file.
    pub(super) fn find(&self, policy: &str, revision: &str) -> Option<Arc<Text>> {
        let shelf = self.locked();
        let old = shelf.old.iter().rev().map(|(text, _)| text);
        let mut all = shelf.in_force.iter().chain(old);
        if let Some(text) = all.find(|text| is(text, policy, revision)) {
            return Some(Arc::clone(text));
        }
        let folder = shelf.folder.clone()?;
        drop(shelf);
        let path = folder.join(file_name(revision)?);
        let bytes = kept::read(&path, MAX_FILE).ok()??;
        let text = Text::from_json(&bytes).ok()?;
        is(&text, policy, revision).then(|| Arc::new(text))
    }

    /// That of what is in force, without looking at the disk.
    pub(super) fn current(&self, policy: &str, revision: &str) -> Option<Arc<Text>> {
        let shelf = self.locked();
        let found = shelf
            .in_force
            .iter()
            .find(|text| is(text, policy, revision));
        found.map(Arc::clone)
    }

    /// Whether this very text is in force.
    pub(super) fn is_in_force(&self, text: &Arc<Text>) -> bool {
        self.locked()
            .in_force
            .iter()
            .any(|now| Arc::ptr_eq(now, text))
    }

    /// The files of what is in force.
    fn names_in_force(&self) -> Vec<String> {
        let shelf = self.locked();
        let revisions = shelf.in_force.iter().map(|text| &text.revision);
        revisions.filter_map(|it| file_name(it)).collect()
    }

    /// Puts a text in force.
    #[cfg(test)]
    pub(super) fn put(&self, text: Arc<Text>) {
        self.locked().in_force.push(text);
    }

    fn locked(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of a revision beside a ledger, for whoever reads that. It is believed as it stands there:
/// the ledger's hashes and signatures do not cover it, so who can write the folder can put another in
/// its place, which then tells another reason as long as it gives the recorded answer. `None` when
/// there is none.
///
/// # Errors
/// Why it cannot be read.
pub fn beside_ledger(ledger: &Path, policy: &str, revision: &str) -> Result<Option<Text>, String> {
    let Some(name) = file_name(revision) else {
        return Ok(None);
    };
    let path = ledger.join(FOLDER).join(name);
    let told = |why: String| format!("{}: {why}", path.display());
    match path.metadata() {
        Ok(found) if found.len() > MAX_FILE => {
            return Err(told(format!("it is larger than {} MiB", MAX_FILE >> 20)));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(error.to_string())),
    }
    let bytes = fs::read(&path).map_err(|error| told(error.to_string()))?;
    let text = Text::from_json(&bytes).map_err(told)?;
    Ok(is(&text, policy, revision).then_some(text))
}

fn is(text: &Text, policy: &str, revision: &str) -> bool {
    *text.policy == *policy && *text.revision == *revision
}

/// Of the digest that a revision begins with: what follows are labels of bundles.
fn file_name(revision: &str) -> Option<String> {
    let digest = revision.split(' ').next()?;
    let word = digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    word.then(|| format!("{digest}.json"))
}

fn write(folder: &Path, text: &Text) {
    let Some(name) = file_name(&text.revision) else {
        return;
    };
    let path = folder.join(name);
    if path.exists() {
        return;
    }
    let most = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
    let written = match text.weight(most) {
        None => Err(format!("it is larger than {} MiB", MAX_FILE >> 20)),
        Some(_) => text
            .to_json()
            .and_then(|json| kept::write(&path, &json).map_err(|error| error.to_string())),
    };
    if let Err(error) = written {
        tracing::warn!(policy = %text.policy, path = %path.display(), error,
            "the text of this policy is not kept beside the ledger: nobody will be told why it decided");
    }
}

/// Removes the oldest files when there are too many, or too many bytes of them. Those with these names
/// stay, however old: they are in force.
fn prune(folder: &Path, in_force: &[String], most: u64) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut files: Vec<(SystemTime, PathBuf, u64)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let path = entry.path();
            let ours = path.extension().is_some_and(|end| end == "json");
            let name = entry.file_name();
            let stays = in_force.iter().any(|one| name == one.as_str());
            let found = entry.metadata().ok()?;
            (ours && !stays).then_some((found.modified().ok()?, path, found.len()))
        })
        .collect();
    files.sort();
    let mut left = files.len() + in_force.len();
    let mut bytes: u64 = files.iter().map(|(_, _, bytes)| bytes).sum();
    for (_, path, size) in files {
        if left <= MAX_FILES && bytes <= most {
            break;
        }
        let _ = fs::remove_file(path);
        left -= 1;
        bytes = bytes.saturating_sub(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(revision: &str) -> Arc<Text> {
        let module = (
            "p.rego".to_owned(),
            "package p\nallow if input.a\n".to_owned(),
        );
        Arc::new(Text::of_module("p", revision, "data.p.allow", vec![module]))
    }

    #[test]
    fn old_texts_are_bounded_and_what_is_in_force_stays() {
        let texts = Texts::default();
        texts.locked().in_force.push(text("now"));
        texts.shelve((0..100).map(|n| text(&n.to_string())).collect());
        assert_eq!(texts.locked().old.len(), MAX_OLD);
        assert!(texts.find("p", "now").is_some());
        assert!(texts.find("p", "99").is_some());
        assert!(texts.find("p", "0").is_none());
        assert!(texts.find("q", "99").is_none());
        assert!(texts.current("p", "99").is_none());
    }

    #[test]
    fn texts_beside_a_ledger_are_found_by_their_revision_alone() {
        let folder = tempfile::tempdir().unwrap();
        let revision = "0123456789abcdef web@7";
        write(&folder.path().join(FOLDER), &text(revision));
        let found = |policy, revision| beside_ledger(folder.path(), policy, revision);
        let text = found("p", revision).unwrap().unwrap();
        assert_eq!(text.entrypoint, "data.p.allow");
        assert!(found("q", revision).unwrap().is_none());
        assert!(found("p", "0123456789abcdef web@8").unwrap().is_none());
        assert!(found("p", "../../etc/passwd").unwrap().is_none());
        let path = folder.path().join(FOLDER).join("0123456789abcdef.json");
        fs::write(path, b"{").unwrap();
        assert!(
            found("p", revision)
                .unwrap_err()
                .contains("0123456789abcdef.json")
        );
    }

    #[test]
    fn files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..MAX_FILES + 20 {
            fs::write(folder.path().join(format!("{n:016x}.json")), b"{}").unwrap();
        }
        prune(folder.path(), &[], MAX_FOLDER);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MAX_FILES);
    }

    #[test]
    fn their_bytes_are_bounded_together_and_what_is_in_force_stays_though_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let name = |n: u64| format!("{n:016x}.json");
        for n in 0..10_u64 {
            let path = folder.path().join(name(n));
            fs::write(&path, [b'x'; 100]).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n);
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(at).unwrap();
        }
        let texts = Texts::default();
        texts.put(text(&format!("{:016x} web@7", 0)));
        prune(folder.path(), &texts.names_in_force(), 350);
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [name(0), name(7), name(8), name(9)]);
    }
}
