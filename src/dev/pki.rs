//! The development certificates: two authorities, a server, two clients, the assertion key; and the
//! admin token beside them.
//!
//! Everything lands in one folder (`certs/dev`), is taken over while it is valid for another day,
//! and is told apart from other people's files by a manifest of digests: a file that is there and
//! not listed is never touched. The authorities' own keys are dropped as soon as they have signed,
//! so nobody can ever issue another certificate under them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use time::OffsetDateTime;

use crate::clock;

/// How long the certificates last.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// What must be left of it for them to be used once more.
const REUSE_MARGIN: Duration = Duration::from_secs(86_400);
/// How far back validity begins, for clocks that are a little behind.
const BACKDATED: Duration = Duration::from_secs(3_600);
/// Largest file that is read back.
const MAX_FILE: u64 = 64 * 1024;

/// The file with the token of the admin listener: random, and as long as the certificates.
const ADMIN_TOKEN: &str = "admin.token";

const MANIFEST: &str = ".made-by-portcullis-dev";

/// The names the server certificate is good for.
const SERVER_NAMES: [&str; 5] = [
    "localhost",
    "api.example.test",
    "partners.example.test",
    "127.0.0.1",
    "::1",
];
/// The client certificates: file name and common name, and the SPIFFE id.
const CLIENTS: [(&str, &str); 2] = [
    ("payments", "spiffe://example.test/service/payments"),
    ("alice-laptop", "spiffe://example.test/device/alice-laptop"),
];

/// Why the development certificates are not there.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file that we did not make stands where one of ours would go.
    #[error(
        "{} was not made by `portcullis dev`, or was changed since, and is not overwritten: move it away", .0.display()
    )]
    Foreign(PathBuf),
    /// Another process is making certificates in the same folder at this moment.
    #[error("another `portcullis dev` is writing to {}: try again", .0.display())]
    Busy(PathBuf),
    /// Reading or writing failed.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Making a key or a certificate failed.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
}

impl PkiError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path, source }
    }
}

/// The development certificates on disk.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The folder that holds them.
    pub folder: PathBuf,
    /// Whether they were made just now, or taken over.
    pub fresh: bool,
}

impl Pki {
    /// Takes over the certificates in `folder`, or makes them.
    ///
    /// # Errors
    /// [`PkiError::Foreign`] when a file that is not ours is in the way.
    pub fn ensure(folder: &Path) -> Result<Self, PkiError> {
        Self::ensure_at(folder, clock::now())
    }

    fn ensure_at(folder: &Path, now: SystemTime) -> Result<Self, PkiError> {
        fs::create_dir_all(folder).map_err(PkiError::file(folder))?;
        let manifest_path = folder.join(MANIFEST);
        let mut manifest = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&manifest_path)
            .map_err(PkiError::file(&manifest_path))?;
        manifest.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => PkiError::Busy(folder.to_path_buf()),
            TryLockError::Error(source) => PkiError::file(&manifest_path)(source),
        })?;

        let listed = read_manifest(&mut manifest).map_err(PkiError::file(&manifest_path))?;
        let found = inspect(folder, &listed)?;
        let complete = found.len() == FILES && listed.len() == FILES;
        let fresh = !(complete && found.iter().all(|file| file.lasts(now)));
        if fresh {
            let made = make(now)?;
            // The new digests are listed before the first file is written and the old ones are
            // forgotten after the last: whatever interrupts this, every file is known as ours.
            let digests: BTreeSet<String> = made.iter().map(MadeFile::digest).collect();
            write_manifest(&mut manifest, listed.union(&digests))
                .map_err(PkiError::file(&manifest_path))?;
            for file in &made {
                file.write(folder)?;
            }
            write_manifest(&mut manifest, digests.iter())
                .map_err(PkiError::file(&manifest_path))?;
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            fresh,
        })
    }

    /// The authority that clients of the gateway trust.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A client's certificate and key.
    pub fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        (
            self.folder.join(format!("{name}.pem")),
            self.folder.join(format!("{name}.key")),
        )
    }
}

/// How many files there are beside the manifest: `ca`, `client-ca`, two of the server, two of each
/// client, the assertion key, the admin token.
const FILES: usize = 6 + 2 * CLIENTS.len();

fn names() -> impl Iterator<Item = String> {
    [
        "ca.pem",
        "client-ca.pem",
        "server.pem",
        "server.key",
        "assertion.pem",
        ADMIN_TOKEN,
    ]
    .into_iter()
    .map(str::to_owned)
    .chain(
        CLIENTS
            .iter()
            .flat_map(|(name, _)| [format!("{name}.pem"), format!("{name}.key")]),
    )
}

/// One file found on disk and known as ours.
struct FoundFile {
    name: String,
    content: Vec<u8>,
}

impl FoundFile {
    /// Whether it is a key or the token, or a certificate that lasts for long enough.
    fn lasts(&self, now: SystemTime) -> bool {
        if self.name == ADMIN_TOKEN {
            return true;
        }
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&self.content) else {
            return false;
        };
        if pem.label != "CERTIFICATE" {
            return true;
        }
        let needed = clock::unix_seconds(now + REUSE_MARGIN);
        pem.parse_x509().is_ok_and(|certificate| {
            u64::try_from(certificate.validity().not_after.timestamp())
                .is_ok_and(|end| end > needed)
        })
    }
}

/// Reads our files back; one that is there and not in the manifest is an error.
fn inspect(folder: &Path, listed: &BTreeSet<String>) -> Result<Vec<FoundFile>, PkiError> {
    let mut found = Vec::new();
    for name in names() {
        let path = folder.join(&name);
        let mut content = Vec::new();
        match File::open(&path) {
            Ok(file) => file
                .take(MAX_FILE)
                .read_to_end(&mut content)
                .map_err(PkiError::file(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PkiError::file(&path)(error)),
        };
        if !listed.contains(&manifest_line(&name, &content)) {
            return Err(PkiError::Foreign(path));
        }
        if private(&name) {
            fs::set_permissions(&path, Permissions::from_mode(0o600))
                .map_err(PkiError::file(&path))?;
        }
        found.push(FoundFile { name, content });
    }
    Ok(found)
}

/// One file to be written.
struct MadeFile {
    name: String,
    content: String,
}

impl MadeFile {
    fn digest(&self) -> String {
        manifest_line(&self.name, self.content.as_bytes())
    }

    /// Writes beside the place and moves there: a reader sees the old file or the new one.
    fn write(&self, folder: &Path) -> Result<(), PkiError> {
        let path = folder.join(&self.name);
        let beside = folder.join(format!(".{}.{}", self.name, std::process::id()));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(if private(&self.name) { 0o600 } else { 0o644 })
                .open(&beside)?;
            file.write_all(self.content.as_bytes())?;
            fs::rename(&beside, &path)
        };
        write().map_err(|error| {
            // Best effort: the error below is the one that matters.
            let _ = fs::remove_file(&beside);
            PkiError::file(&path)(error)
        })
    }
}

fn private(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "key")
        || name == "assertion.pem"
        || name == ADMIN_TOKEN
}

fn manifest_line(name: &str, content: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, content);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("{hex}  {name}")
}

fn read_manifest(file: &mut File) -> io::Result<BTreeSet<String>> {
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn write_manifest<'a>(file: &mut File, lines: impl Iterator<Item = &'a String>) -> io::Result<()> {
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    file.seek(SeekFrom::Start(0))?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// Makes one whole generation.
fn make(now: SystemTime) -> Result<Vec<MadeFile>, rcgen::Error> {
    let mut files = Vec::with_capacity(FILES);
    let mut file = |name: &str, content: String| {
        files.push(MadeFile {
            name: name.to_owned(),
            content,
        });
    };

    let (server_ca, certificate) = authority("Portcullis development servers", now)?;
    file("ca.pem", certificate.pem());
    let mut server = parameters("localhost", now);
    server.subject_alt_names =
        CertificateParams::new(SERVER_NAMES.map(str::to_owned).to_vec())?.subject_alt_names;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    file("server.pem", server.signed_by(&key, &server_ca)?.pem());
    file("server.key", key.serialize_pem());

    let (client_ca, certificate) = authority("Portcullis development clients", now)?;
    file("client-ca.pem", certificate.pem());
    for (name, spiffe_id) in CLIENTS {
        let mut client = parameters(name, now);
        client.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        file(
            &format!("{name}.pem"),
            client.signed_by(&key, &client_ca)?.pem(),
        );
        file(&format!("{name}.key"), key.serialize_pem());
    }

    let assertion = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    file("assertion.pem", assertion.serialize_pem());

    let token: [u8; 32] = rand::random();
    let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    file(ADMIN_TOKEN, token + "\n");
    Ok(files)
}

fn authority(
    name: &str,
    now: SystemTime,
) -> Result<(Issuer<'static, KeyPair>, Certificate), rcgen::Error> {
    let mut params = parameters(name, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((Issuer::new(params, key), certificate))
}

fn parameters(common_name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Portcullis development");
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = OffsetDateTime::from(now - BACKDATED);
    params.not_after = OffsetDateTime::from(now + LIFETIME);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(pki: &Pki, name: &str) -> Vec<u8> {
        fs::read(pki.folder.join(name)).unwrap()
    }

    #[test]
    fn certificates_are_made_once_and_taken_over_while_they_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certs/dev");
        let first = Pki::ensure(&path).unwrap();
        assert!(first.fresh);
        for name in names() {
            assert!(path.join(&name).exists(), "{name}");
        }
        let server = bytes(&first, "server.pem");

        let second = Pki::ensure(&path).unwrap();
        assert!(!second.fresh);
        assert_eq!(bytes(&second, "server.pem"), server);

        let later = clock::now() + LIFETIME - REUSE_MARGIN + Duration::from_secs(60);
        let third = Pki::ensure_at(&path, later).unwrap();
        assert!(third.fresh);
        assert_ne!(bytes(&third, "server.pem"), server);
    }

    #[test]
    fn a_file_that_is_not_ours_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("server.key"), "mine").unwrap();
        let error = Pki::ensure(folder.path()).unwrap_err();
        assert!(matches!(error, PkiError::Foreign(path) if path.ends_with("server.key")));
        assert_eq!(fs::read(folder.path().join("server.key")).unwrap(), b"mine");
        assert!(!folder.path().join("ca.pem").exists());
    }

    #[test]
    fn a_changed_file_is_no_longer_ours() {
        let folder = tempfile::tempdir().unwrap();
        Pki::ensure(folder.path()).unwrap();
        fs::write(folder.path().join("ca.pem"), "another authority").unwrap();
        assert!(matches!(
            Pki::ensure(folder.path()),
            Err(PkiError::Foreign(_))
        ));
    }

    #[test]
    fn a_lost_file_is_mended_by_a_new_generation() {
        let folder = tempfile::tempdir().unwrap();
        Pki::ensure(folder.path()).unwrap();
        fs::remove_file(folder.path().join("payments.key")).unwrap();
        assert!(Pki::ensure(folder.path()).unwrap().fresh);
        assert!(!Pki::ensure(folder.path()).unwrap().fresh);
    }

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        Pki::ensure(folder.path()).unwrap();
        for name in names().filter(|name| private(name)) {
            let mode = fs::metadata(folder.path().join(&name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(!folder.path().join("ca.key").exists());
    }

    #[test]
    fn the_client_certificate_carries_its_spiffe_id_alone() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(folder.path()).unwrap();
        let pem = bytes(&pki, "payments.pem");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            vec![x509_parser::extensions::GeneralName::URI(CLIENTS[0].1)]
        );
    }
}
