//! Sockets and TLS of the load.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use memchr::memmem;
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsConnector;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Sessions kept for resumption.
const SESSIONS: usize = 4096;

/// A connection, with or without TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Where requests go and how connections to it are made.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Target {
    /// `host:port` of the peer, by address
    #[arg(long)]
    pub(crate) address: SocketAddr,
    /// Speak HTTP/2 (with TLS by ALPN, else with prior knowledge)
    #[arg(long)]
    pub(crate) http2: bool,
    /// Trust this authority, and speak TLS 1.3 to `localhost`
    #[arg(long, value_name = "PEM")]
    pub(crate) ca: Option<PathBuf>,
    /// Present this client certificate
    #[arg(long, value_name = "PEM", requires = "key")]
    pub(crate) certificate: Option<PathBuf>,
    /// The key of --certificate
    #[arg(long, value_name = "PEM")]
    pub(crate) key: Option<PathBuf>,
    /// Connect from this address
    #[arg(long)]
    pub(crate) source: Option<IpAddr>,
    /// Resume TLS sessions
    #[arg(long)]
    pub(crate) resume: bool,
}

/// Makes connections.
pub(crate) struct Dialer {
    address: SocketAddr,
    source: Option<IpAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A connection and whether its TLS session was resumed.
pub(crate) struct Dialed {
    pub(crate) stream: Box<dyn Io>,
    pub(crate) resumed: bool,
}

impl Dialer {
    /// Reads the certificates.
    pub(crate) fn new(target: &Target) -> Result<Self> {
        let tls = match &target.ca {
            None => None,
            Some(ca) => Some((
                TlsConnector::from(Arc::new(client_config(target, ca)?)),
                ServerName::try_from("localhost")?,
            )),
        };
        Ok(Self {
            address: target.address,
            source: target.source,
            tls,
        })
    }

    /// Connects, and shakes hands.
    pub(crate) async fn dial(&self) -> io::Result<Dialed> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else {
            return Ok(Dialed {
                stream: Box::new(stream),
                resumed: false,
            });
        };
        let stream = connector.connect(name.clone(), stream).await?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Dialed {
            stream: Box::new(stream),
            resumed,
        })
    }
}

fn client_config(target: &Target, ca: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(ca)? {
        roots.add(certificate)?;
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(Arc::new(classical(provider)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match (&target.certificate, &target.key) {
        (Some(certificate), Some(key)) => {
            let text = fs::read(key).with_context(|| format!("cannot read {}", key.display()))?;
            builder
                .with_client_auth_cert(chain(certificate)?, PrivateKeyDer::from_pem_slice(&text)?)?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![if target.http2 {
        b"h2".to_vec()
    } else {
        b"http/1.1".to_vec()
    }];
    config.resumption = if target.resume {
        Resumption::store(Arc::new(Tickets::default()))
    } else {
        Resumption::disabled()
    };
    Ok(config)
}

/// All tickets of the one server. The store of rustls keeps eight, fewer than there are connections.
#[derive(Debug, Default)]
struct Tickets(Mutex<VecDeque<Tls13ClientSessionValue>>);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() == SESSIONS {
            tickets.pop_front();
        }
        tickets.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_back()
    }
}

/// X25519 alone: what all peers can do, so that all do the same work.
fn classical(mut provider: rustls::crypto::CryptoProvider) -> rustls::crypto::CryptoProvider {
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    provider
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        bail!("no certificate in {}", file.display());
    }
    Ok(chain)
}

/// A listener with a long queue, so that a storm of connections does not run into resends.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The `content-length` of a head.
pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let at = memmem::find_iter(head, b"\r\n")
        .map(|at| at + 2)
        .find(|&at| {
            head.get(at..at + NAME.len())
                .is_some_and(|name| name.eq_ignore_ascii_case(NAME))
        })?;
    let line = head
        .get(at + NAME.len()..)?
        .split(|&byte| byte == b'\r')
        .next()?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}
