//! What is written is read again; what somebody else may have written is not.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::authn::book::Origin;
use crate::authn::testing::{Signer, jwks};

const ISSUER: &str = "https://issuer.test";

fn book() -> Book {
    let signers = [Signer::new("ES256", "a"), Signer::new("RS256", "b")];
    let set = KeySet::parse(jwks(&[&signers[0], &signers[1]]).as_bytes()).unwrap();
    let mut book = Book::default();
    let now = (tokio::time::Instant::now(), crate::clock::now());
    book.replace(set, Origin::Network, now, None, Duration::ZERO);
    let gone = super::super::book::KeyName {
        kid: Some("gone".into()),
        thumbprint: None,
    };
    book.distrust(&gone, 7).unwrap();
    book
}

fn written() -> (tempfile::TempDir, PathBuf, Book) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let book = book();
    write(&path, Kept::of(&book, ISSUER)).unwrap();
    (folder, path, book)
}

fn refusal(path: &Path) -> Refusal {
    read(path, ISSUER, crate::clock::now()).unwrap_err()
}

#[test]
fn what_is_written_is_read_again() {
    let (folder, path, book) = written();
    let found = read(&path, ISSUER, crate::clock::now()).unwrap().unwrap();
    let prints =
        |keys: &[Published]| -> Vec<_> { keys.iter().map(|one| one.key.fingerprint).collect() };
    assert_eq!(prints(&found.published), prints(&book.published));
    assert_eq!(found.distrusted, book.distrusted);
    assert!(found.age < Duration::from_secs(5));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Nothing is left beside it, also after writing over it.
    write(&path, Kept::of(&book, ISSUER)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = folder.path().join("nowhere/keys.json");
    assert!(
        read(&nowhere, ISSUER, crate::clock::now())
            .unwrap()
            .is_none()
    );
    // Its folder is made, for nobody else.
    write(&nowhere, Kept::of(&book, ISSUER)).unwrap();
    let mode = fs::metadata(nowhere.parent().unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn every_damaged_byte_is_noticed() {
    let (_folder, path, _) = written();
    let good = fs::read(&path).unwrap();
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        fs::write(&path, &bad).unwrap();
        match read(&path, ISSUER, crate::clock::now()) {
            Err(refusal) => assert!(refusal.may_hide_distrust(), "{refusal}"),
            // White space between members may become other white space.
            Ok(_) => assert!(good[place].is_ascii_whitespace(), "byte {place}"),
        }
    }
    for length in [0, 1, good.len() / 2, good.len() - 2] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(matches!(refusal(&path), Refusal::Damaged(_)));
    }
    fs::write(&path, vec![b' '; usize::try_from(MAX_FILE).unwrap() + 1]).unwrap();
    assert!(matches!(
        refusal(&path),
        Refusal::Damaged("it is too large")
    ));
}

#[test]
fn another_issuers_keys_and_keys_from_the_future_are_refused_and_distrust_needs_no_clock() {
    let (_folder, path, book) = written();
    let other = read(&path, "https://other.test", crate::clock::now()).unwrap_err();
    assert!(matches!(other, Refusal::Issuer) && !other.may_hide_distrust());
    let at = |seconds| crate::clock::now() - Duration::from_secs(seconds);
    assert!(read(&path, ISSUER, at(30)).is_ok(), "a small step back");
    let future = read(&path, ISSUER, at(3600)).unwrap().unwrap();
    assert!(future.from_future && future.published.is_empty());
    assert_eq!(future.distrusted, book.distrusted);
    assert_eq!(future.age, Duration::MAX);
    let later = crate::clock::now() + Duration::from_secs(3600);
    let found = read(&path, ISSUER, later).unwrap().unwrap();
    assert!(found.age >= Duration::from_secs(3590));
}

#[test]
fn a_file_that_others_could_have_written_is_not_read() {
    let (folder, path, book) = written();
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        assert!(matches!(refusal(&path), Refusal::Insecure(_)), "{mode:o}");
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(read(&path, ISSUER, crate::clock::now()).is_ok());

    let link = folder.path().join("link.json");
    symlink(&path, &link).unwrap();
    assert!(matches!(
        refusal(&link),
        Refusal::Insecure("it is a symbolic link")
    ));
    // Written over, the link goes, and what it led to is as it was.
    let before = fs::read(&path).unwrap();
    let mut other = book.clone();
    other.distrusted.clear();
    write(&link, Kept::of(&other, ISSUER)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(fs::symlink_metadata(&link).unwrap().is_file());

    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    assert!(matches!(
        refusal(&pipe),
        Refusal::Insecure("it is something else")
    ));
    assert!(matches!(
        refusal(folder.path()),
        Refusal::Insecure("it is something else")
    ));

    for mode in [0o777, 0o775] {
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).unwrap();
        assert!(matches!(refusal(&path), Refusal::Insecure(_)), "{mode:o}");
        assert!(write(&path, Kept::of(&book, ISSUER)).is_err(), "{mode:o}");
    }
}
