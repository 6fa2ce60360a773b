//! Files beside the document: read within bounds, and told apart by content.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// How many entries of a folder count towards its digest; more are not looked at.
const MAX_ENTRIES: usize = 10_000;

/// How deep folders are followed. A symbolic link that leads back to its folder ends here.
const MAX_DEPTH: usize = 8;

/// SHA-256 over content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentDigest([u8; digest::SHA256_OUTPUT_LEN]);

impl ContentDigest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::take(&digest::digest(&digest::SHA256, bytes))
    }

    fn take(digest: &digest::Digest) -> Self {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes
            .iter_mut()
            .zip(digest.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self(bytes)
    }

    /// The bytes of the digest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The first 16 hex digits: enough to tell revisions apart, short enough to read out.
impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One digest over files and folders. A digest that is given is believed; the rest is read.
pub fn digest_files<'p>(
    files: impl IntoIterator<Item = (&'p Path, Option<ContentDigest>)>,
) -> ContentDigest {
    let mut context = digest::Context::new(&digest::SHA256);
    for (path, known) in files {
        let mut budget = MAX_ENTRIES;
        add(&mut context, path, known, MAX_DEPTH, &mut budget);
    }
    ContentDigest::take(&context.finish())
}

fn add(
    context: &mut digest::Context,
    path: &Path,
    known: Option<ContentDigest>,
    depth: usize,
    budget: &mut usize,
) {
    if depth == 0 || *budget == 0 {
        return;
    }
    *budget -= 1;
    let name = path.as_os_str().as_encoded_bytes();
    context.update(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
    context.update(name);
    if let Some(known) = known {
        context.update(b"f");
        context.update(known.as_bytes());
    } else if let Ok(entries) = std::fs::read_dir(path) {
        let mut entries: Vec<PathBuf> = entries
            .flatten()
            .take(MAX_ENTRIES)
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        context.update(b"d");
        for entry in entries {
            add(context, &entry, None, depth - 1, budget);
        }
        context.update(b"e");
    } else if let Ok(bytes) = read(path) {
        context.update(b"f");
        context.update(ContentDigest::of(&bytes).as_bytes());
    } else {
        context.update(b"-");
    }
}

/// Reads a regular file of at most [`MAX_FILE`] bytes.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Asked before opening: opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is larger than {} MiB",
            MAX_FILE >> 20
        )));
    }
    Ok(bytes)
}

/// A file beside the missing one whose name is nearly the same.
pub(super) fn neighbour(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let names: Vec<String> = std::fs::read_dir(path.parent()?)
        .ok()?
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|other| other != name)
        .collect();
    super::suggest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_follows_content_not_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.rego");
        let of = || digest_files([(dir.path(), None)]);
        let empty = of();
        std::fs::write(&file, "x").unwrap();
        let first = of();
        std::fs::write(&file, "y").unwrap();
        assert_ne!(first, of());
        std::fs::write(&file, "x").unwrap();
        assert_eq!(first, of());
        assert_ne!(first, empty);
        std::fs::rename(&file, dir.path().join("b.rego")).unwrap();
        assert_ne!(first, of());
    }

    #[test]
    fn what_is_not_a_regular_file_of_bounded_size_is_not_read() {
        assert!(read(Path::new("/dev/zero")).is_err());
        assert!(read(Path::new("/")).is_err());
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(read(&large).unwrap_err().to_string().contains("larger"));
        File::create(&large).unwrap().set_len(MAX_FILE).unwrap();
        assert!(read(&large).is_ok());
    }

    #[test]
    fn folders_that_lead_back_to_themselves_end() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        let _ = digest_files([(dir.path(), None)]);
    }
}
