//! The server's handshake, and what is known of a client after it.

use std::io;
use std::sync::Arc;

use rustls::{
    AlertDescription, CertificateError, Error, HandshakeKind, PeerIncompatible, ProtocolVersion,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::server::ServerTls;
use super::{PeerCertificate, Standing};
use crate::clock;

/// A finished handshake.
#[derive(Debug)]
pub struct Session<S> {
    /// The encrypted stream; on the heap, for it is over a kilobyte and moves through several futures,
    /// each of which would hold room for it as long as the connection is open.
    pub stream: Box<TlsStream<S>>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The server name that the client asked for, in lower case.
    pub server_name: Option<Arc<str>>,
    /// The client certificate, verified against the listener's authorities.
    pub peer_certificate: Option<Arc<PeerCertificate>>,
    /// The standing of that certificate.
    pub standing: Option<Arc<Standing>>,
    /// Whether the client chose HTTP/2 by ALPN.
    pub http2: bool,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Why a handshake failed, in the words of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFault {
    /// It took longer than the listener allows.
    Timeout,
    /// Given up in favour of newer ones, because too many were open.
    Evicted,
    /// The peer hung up.
    Closed,
    /// What the peer sent is no TLS.
    NotTls,
    /// No version, cipher suite or protocol in common.
    Incompatible,
    /// A certificate is required and none was presented.
    NoCertificate,
    /// The client's certificate has expired, or is not valid yet.
    ExpiredCertificate,
    /// The client's certificate, or one above it, was revoked.
    RevokedCertificate,
    /// Whether the client's certificate was revoked is not known: the list of an authority in its
    /// chain is missing, has expired, or is not signed by it.
    RevocationUnknown,
    /// The client's certificate is from an authority that we do not believe.
    UnknownAuthority,
    /// The client's certificate cannot be used for another reason.
    BadCertificate,
    /// The client refused our certificate.
    RefusedByPeer,
    /// Anything else.
    Other,
}

impl HandshakeFault {
    /// The word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Evicted => "evicted",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::NoCertificate => "no_certificate",
            Self::ExpiredCertificate => "expired_certificate",
            Self::RevokedCertificate => "revoked_certificate",
            Self::RevocationUnknown => "revocation_unknown",
            Self::UnknownAuthority => "unknown_authority",
            Self::BadCertificate => "bad_certificate",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Other => "other",
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library may add variants; they are counted as what is left over"
    )]
    fn of(error: &io::Error) -> Self {
        let Some(error) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>())
        else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::Closed,
                io::ErrorKind::TimedOut => Self::Timeout,
                _ => Self::Other,
            };
        };
        Self::of_library(error)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library may add variants; they are counted as what is left over"
    )]
    fn of_library(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::ExpiredCertificate,
                CertificateError::Revoked => Self::RevokedCertificate,
                CertificateError::UnknownRevocationStatus
                | CertificateError::ExpiredRevocationList
                | CertificateError::ExpiredRevocationListContext { .. } => Self::RevocationUnknown,
                CertificateError::UnknownIssuer => Self::UnknownAuthority,
                _ => Self::BadCertificate,
            },
            Error::InvalidCertRevocationList(_) => Self::RevocationUnknown,
            Error::PeerIncompatible(
                PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon,
            ) => Self::BadCertificate,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Incompatible,
            Error::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown,
            ) => Self::RefusedByPeer,
            Error::AlertReceived(_) => Self::Closed,
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. } => Self::NotTls,
            _ => Self::Other,
        }
    }
}

impl ServerTls {
    /// Takes a client through the handshake. Bounded in time by the caller; dropping the future
    /// closes the connection.
    ///
    /// # Errors
    /// [`HandshakeFault`]; the client was told by an alert where the protocol has one.
    pub async fn handshake<S>(&self, stream: S) -> Result<Session<S>, HandshakeFault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(Arc::clone(&self.config))
            .accept(stream)
            .await
            .map_err(|error| HandshakeFault::of(&error))?;
        let (_, session) = stream.get_ref();
        let peer_certificate = session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(PeerCertificate::from_verified)
            .transpose()
            .map_err(|_| HandshakeFault::BadCertificate)?;
        // A resumed session brings the certificates of the first one, which were verified back then:
        // they are judged by what is in force now. After a full handshake this is a look-up.
        let standing = match (session.peer_certificates(), &self.clients) {
            (Some(certificates), Some(trust)) => {
                let chain = trust
                    .chain(certificates, clock::now())
                    .map_err(|error| HandshakeFault::of_library(&error))?;
                Some(Arc::new(Standing::new(chain, Arc::clone(trust))))
            }
            (Some(_), None) => return Err(HandshakeFault::UnknownAuthority),
            (None, _) => None,
        };
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => return Err(HandshakeFault::Incompatible),
        };
        Ok(Session {
            version,
            server_name: session
                .server_name()
                .map(|name| name.to_ascii_lowercase().into()),
            peer_certificate: peer_certificate.map(Arc::new),
            standing,
            http2: session.alpn_protocol() == Some(b"h2"),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            stream: Box::new(stream),
        })
    }
}
