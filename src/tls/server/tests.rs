use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::tls::testing::{Authority, compile, compile_in};
use crate::tls::{HandshakeFault, Session};

fn pair(chain: &str, key: &str) -> CertificateConfig {
    CertificateConfig {
        chain: chain.into(),
        key: key.into(),
    }
}

fn config(mode: ClientCertificateMode) -> ServerTlsConfig {
    let authorities = match mode {
        ClientCertificateMode::None => vec![],
        ClientCertificateMode::Optional | ClientCertificateMode::Required => vec!["ca.pem".into()],
    };
    ServerTlsConfig {
        certificates: vec![pair("a.pem", "a.key")],
        client_certificates: ClientCertificatesConfig {
            mode,
            authorities,
            ..ClientCertificatesConfig::default()
        },
        minimum_version: MinimumVersion::Tls12,
    }
}

/// A world with two authorities, servers of the first, and a folder with their files.
struct World {
    ours: Authority,
    theirs: Authority,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            ours: Authority::new("ours"),
            theirs: Authority::new("theirs"),
            folder: tempfile::tempdir().unwrap(),
        };
        world.write("ca.pem", &world.ours.pem());
        for (name, names) in [
            ("a", &["a.test"][..]),
            ("b", &["b.test", "*.wild.test"][..]),
        ] {
            let (chain, key) = world.ours.server(names);
            world.write(&format!("{name}.pem"), &chain);
            world.write(&format!("{name}.key"), &key);
        }
        world
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn try_compile(
        &self,
        config: ServerTlsConfig,
        previous: Option<&Arc<ServerTls>>,
    ) -> (Option<Arc<ServerTls>>, Vec<crate::schema::Problem>) {
        compile_in(self.folder.path(), |cx| config.compile(previous, cx))
    }

    fn compile(&self, config: ServerTlsConfig) -> Arc<ServerTls> {
        let (tls, problems) = self.try_compile(config, None);
        assert!(problems.is_empty(), "{problems:?}");
        tls.unwrap()
    }

    fn client(&self, identity: Option<(String, String)>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(pem::authorities(&[self.ours.pem().into_bytes()]).unwrap());
        let mut config = match identity {
            Some((chain, key)) => builder
                .with_client_auth_cert(
                    pem::certificates(chain.as_bytes()).unwrap(),
                    pem::private_key(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// Connects and exchanges a byte each way, so that tickets arrive. Gives the server's view and the
/// leaf that the client saw.
async fn connect(
    tls: &Arc<ServerTls>,
    client: &Arc<ClientConfig>,
    name: &str,
) -> Result<(Session<tokio::io::DuplexStream>, Vec<u8>), HandshakeFault> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(Arc::clone(client));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let server = async {
        let mut session = tls.handshake(ours).await?;
        let _ = session.stream.write_all(b"x").await;
        let _ = session.stream.flush().await;
        Ok(session)
    };
    let client = async {
        let mut stream = connector.connect(name, theirs).await.ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
    };
    let both = async { tokio::join!(server, client) };
    let (session, leaf) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .unwrap();
    Ok((session?, leaf.unwrap_or_default()))
}

fn leaf(world: &World, name: &str) -> Vec<u8> {
    let text = std::fs::read(world.folder.path().join(name)).unwrap();
    CertificateDer::from_pem_slice(&text).unwrap().to_vec()
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate_and_the_first_is_the_default() {
    let world = World::new();
    let mut config = config(ClientCertificateMode::None);
    config.certificates.push(pair("b.pem", "b.key"));
    let tls = world.compile(config);
    let client = world.client(None);
    for (name, file) in [
        ("a.test", "a.pem"),
        ("b.test", "b.pem"),
        ("x.wild.test", "b.pem"),
    ] {
        let (session, seen) = connect(&tls, &client, name).await.unwrap();
        assert_eq!(seen, leaf(&world, file), "{name}");
        assert_eq!(session.server_name.as_deref(), Some(name));
        assert_eq!(session.version, "TLSv1.3");
        assert!(session.http2);
    }
    // The client refuses the default for these names, which shows that it was presented.
    for name in ["x.y.wild.test", "unknown.test", "127.0.0.1"] {
        let fault = connect(&tls, &client, name).await.unwrap_err();
        assert_eq!(fault, HandshakeFault::RefusedByPeer, "{name}");
    }
}

#[tokio::test]
async fn client_certificates_are_verified_in_every_mode_that_asks() {
    use ClientCertificateMode::{None, Optional, Required};
    let world = World::new();
    let good = || Some(world.ours.client("good", &["spiffe://ours.test/good"]));
    let foreign = || Some(world.theirs.client("foreign", &[]));
    let as_server = || Some(world.ours.server(&["a.test"]));
    for (mode, identity, expected) in [
        (None, good(), Ok(false)),
        (Optional, Option::None, Ok(false)),
        (Optional, good(), Ok(true)),
        (Optional, foreign(), Err(HandshakeFault::UnknownAuthority)),
        (Optional, as_server(), Err(HandshakeFault::BadCertificate)),
        (Required, Option::None, Err(HandshakeFault::NoCertificate)),
        (Required, good(), Ok(true)),
        (Required, foreign(), Err(HandshakeFault::UnknownAuthority)),
    ] {
        let tls = world.compile(config(mode));
        let found = connect(&tls, &world.client(identity), "a.test").await;
        let found = found.map(|(session, _)| match session.peer_certificate {
            Some(peer) => {
                assert_eq!(peer.spiffe_id.as_deref(), Some("spiffe://ours.test/good"));
                true
            }
            Option::None => false,
        });
        assert_eq!(found, expected, "{mode:?}");
    }
}

#[tokio::test]
async fn a_changed_authority_accepts_no_older_session() {
    let world = World::new();
    let before = world.compile(config(ClientCertificateMode::Required));
    let client = world.client(Some(world.ours.client("good", &[])));
    assert!(!connect(&before, &client, "a.test").await.unwrap().0.resumed);
    let (again, _) = connect(&before, &client, "a.test").await.unwrap();
    assert!(again.resumed && again.peer_certificate.is_some());

    // Nothing changed: the same object, so sessions go on.
    let (same, _) = world.try_compile(config(ClientCertificateMode::Required), Some(&before));
    assert!(Arc::ptr_eq(&same.unwrap(), &before));

    world.write("ca.pem", &world.theirs.pem());
    let (after, _) = world.try_compile(config(ClientCertificateMode::Required), Some(&before));
    let fault = connect(&after.unwrap(), &client, "a.test")
        .await
        .unwrap_err();
    assert_eq!(fault, HandshakeFault::UnknownAuthority);
}

#[tokio::test]
async fn the_minimum_version_is_kept() {
    let world = World::new();
    let mut config = config(ClientCertificateMode::None);
    config.minimum_version = MinimumVersion::Tls13;
    let tls = world.compile(config);
    let old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(pem::authorities(&[world.ours.pem().into_bytes()]).unwrap())
        .with_no_client_auth();
    let fault = connect(&tls, &Arc::new(old), "a.test").await.unwrap_err();
    assert_eq!(fault, HandshakeFault::Incompatible);
    assert_eq!(tls.config.max_early_data_size, 0);
}

#[tokio::test]
async fn what_is_no_tls_is_named_so() {
    let world = World::new();
    let tls = world.compile(config(ClientCertificateMode::None));
    let (ours, mut theirs) = tokio::io::duplex(4096);
    theirs
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(
        tls.handshake(ours).await.unwrap_err(),
        HandshakeFault::NotTls
    );
    let (ours, theirs) = tokio::io::duplex(4096);
    drop(theirs);
    assert_eq!(
        tls.handshake(ours).await.unwrap_err(),
        HandshakeFault::Closed
    );
}

#[tokio::test]
async fn revoked_certificates_and_stale_lists_are_refused() {
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
    let world = World::new();
    let (_, chain, key) = world.ours.leaf(|params| {
        params.serial_number = Some(SerialNumber::from(7));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let signed = |authority: &Authority, serials: &[u64], next_update| {
        CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&authority.issuer)
        .unwrap()
        .pem()
        .unwrap()
    };
    let list = |serials: &[u64], next_update| signed(&world.ours, serials, next_update);
    // The same name under another key: a list that only looks like our authority's.
    let impostor = Authority::new("ours");
    let later = rcgen::date_time_ymd(2120, 1, 1);
    let earlier = rcgen::date_time_ymd(2021, 1, 1);
    for (text, expected) in [
        (list(&[8], later), Ok(())),
        (list(&[7], later), Err(HandshakeFault::RevokedCertificate)),
        (list(&[8], earlier), Err(HandshakeFault::RevocationUnknown)),
        (
            signed(&impostor, &[], later),
            Err(HandshakeFault::RevocationUnknown),
        ),
        (
            signed(&world.theirs, &[], later),
            Err(HandshakeFault::RevocationUnknown),
        ),
    ] {
        world.write("list.pem", &text);
        let mut config = config(ClientCertificateMode::Required);
        config.client_certificates.revocation_lists = vec!["list.pem".into()];
        let (tls, problems) = world.try_compile(config, None);
        let warnings = problems
            .iter()
            .all(|problem| problem.severity == crate::schema::Severity::Warning);
        assert!(warnings, "{problems:?}");
        let client = world.client(Some((chain.clone(), key.clone())));
        let found = connect(&tls.unwrap(), &client, "a.test").await;
        assert_eq!(found.map(|_| ()), expected);
    }
}

#[test]
fn unusable_files_are_problems_and_never_the_system_pool() {
    let authority = Authority::new("ca");
    let (chain, key) = authority.server(&["a.test"]);
    let (_, other_key) = authority.server(&["a.test"]);
    let nameless = authority.leaf(|_| {});
    let files = [
        ("a.pem", chain),
        ("a.key", key),
        ("other.key", other_key),
        ("empty.pem", String::new()),
        ("nameless.pem", nameless.1),
        ("nameless.key", nameless.2),
        (
            "broken.pem",
            "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n".to_owned(),
        ),
        ("ca.pem", authority.pem()),
    ];
    let places = |config: ServerTlsConfig| {
        let (made, problems) = compile(&files, |cx| config.compile(None, cx));
        assert!(made.is_none());
        problems.into_iter().map(|p| p.path).collect::<Vec<_>>()
    };
    let mut bad = config(ClientCertificateMode::Optional);
    bad.certificates = vec![
        pair("a.pem", "other.key"),
        pair("missing.pem", "empty.pem"),
        pair("nameless.pem", "nameless.key"),
    ];
    bad.client_certificates.authorities = vec![
        "missing.pem".into(),
        "empty.pem".into(),
        "broken.pem".into(),
        "a.key".into(),
    ];
    assert_eq!(
        places(bad),
        [
            "certificates[0].key",
            "certificates[1].chain",
            "certificates[1].key",
            "certificates[2]",
            "client_certificates.authorities[0]",
            "client_certificates.authorities[1]",
            "client_certificates.authorities[2]",
            "client_certificates.authorities[3]",
        ]
    );
    let mut without = config(ClientCertificateMode::Required);
    without.client_certificates.authorities.clear();
    assert_eq!(places(without), ["client_certificates"]);
    let mut unused = config(ClientCertificateMode::Optional);
    unused.client_certificates.mode = ClientCertificateMode::None;
    assert_eq!(places(unused), ["client_certificates"]);
    let mut bare = config(ClientCertificateMode::None);
    bare.certificates.clear();
    assert_eq!(places(bare), ["certificates"]);
}

#[test]
fn an_expired_certificate_is_a_warning_and_a_weak_key_a_problem() {
    let authority = Authority::new("ca");
    let (_, chain, key) = authority.leaf(|params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        params.subject_alt_names = vec![rcgen::SanType::DnsName("a.test".try_into().unwrap())];
    });
    let files = [("a.pem", chain), ("a.key", key)];
    let (made, problems) = compile(&files, |cx| {
        config(ClientCertificateMode::None).compile(None, cx)
    });
    assert!(made.is_some());
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].severity, crate::schema::Severity::Warning);
    assert!(matches!(
        pem::certificates(WEAK.as_bytes()),
        Err(TlsError::WeakKey(1024))
    ));
}

/// A self-signed certificate with an RSA key of 1024 bits.
const WEAK: &str = include_str!("weak.pem");
