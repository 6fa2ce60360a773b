//! Files that outlive the process, and that nobody else could have written.
//!
//! Whoever can write such a file decides whose tokens are believed, or who is let in; so it is read only
//! when nobody but the gateway's own user could have written it: a regular file (no symbolic link), owned
//! by that user (or root), writable by nobody else, in a folder where nobody else can put another in its
//! place. It is written beside itself, flushed, and renamed: a crash leaves the old one or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// The system's reason.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Somebody else could have written it.
    #[error("it is no regular file of the gateway's own: {0}")]
    Insecure(&'static str),
    /// Longer than may be read.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
}

/// Reads what was kept, at most so many bytes; `None` when there is no file. Blocks.
///
/// # Errors
/// [`Unusable`].
pub(crate) fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Unusable> {
    // Neither a symbolic link is followed nor a pipe waited for.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(Unusable::Insecure("it is a symbolic link"));
        }
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Unusable::Insecure("it is something else"));
    }
    if !is_ours(metadata.uid()) {
        return Err(Unusable::Insecure("it belongs to another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(Unusable::Insecure("others may write it"));
    }
    check_folder(path)?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        return Err(Unusable::TooLarge(most));
    }
    Ok(Some(bytes))
}

/// Writes, flushes and puts in place. Blocks.
///
/// # Errors
/// Why it could not; then the file is as it was.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder(path))?;
    check_folder(path).map_err(io::Error::other)?;
    let beside = beside(path)?;
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written?;
    // The new name is as durable as the content.
    File::open(folder(path))?.sync_all()
}

/// A name of its own: two processes may write at one time, as one takes over from the other.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("the path has no file name"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{:016x}", rand::random::<u64>()));
    Ok(path.with_file_name(beside))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where others may rename, they may put another file in the place of ours.
fn check_folder(path: &Path) -> Result<(), Unusable> {
    let metadata = fs::metadata(folder(path))?;
    let sticky = metadata.mode() & 0o1000 != 0;
    if metadata.mode() & 0o022 != 0 && !sticky {
        return Err(Unusable::Insecure("others may write in its folder"));
    }
    if !is_ours(metadata.uid()) && !sticky {
        return Err(Unusable::Insecure("its folder belongs to another user"));
    }
    Ok(())
}

fn is_ours(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/authz.tar.gz");
        assert!(read(&path, 10).unwrap().is_none());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(matches!(read(&path, 2), Err(Unusable::TooLarge(2))));
    }

    #[test]
    fn a_file_that_another_could_have_written_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        write(&path, b"x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        assert!(
            read(&path, 10)
                .unwrap_err()
                .to_string()
                .contains("others may write it")
        );
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(
            read(&link, 10)
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            write(&path, b"y")
                .unwrap_err()
                .to_string()
                .contains("folder")
        );
    }
}
