//! Both sides of TLS: what listeners present and demand, what upstreams and fetches trust.
//! The only room that names rustls. It never decides who may do what.

//!
//! # What becomes of client certificates
//!
//! A chain must lead to one of the listener's `authorities` at this moment, by signatures and dates,
//! path lengths, name constraints and key usage, and the leaf must be a client's. Where the rules
//! leave a choice, this is ours:
//!
//! | certificate | what we do |
//! | --- | --- |
//! | without extended key usage | let in: its authority did not restrict it |
//! | with `anyExtendedKeyUsage` alone | refused: it does not say `clientAuth` |
//! | that is itself an authority (`CA: TRUE`) | refused |
//! | with more than a few intermediates | refused, so that building the path has an end |
//! | of a constrained authority, a foreign name in its common name | let in; a common name is never an identity |
//! | with several URI names | let in without a SPIFFE id; `subject: spiffe` or `uri` refuses it |
//! | with a NUL or a control byte in a name | let in; such a name is left out, as if it were not there, and still counts as a second URI |
//! | with line breaks, quotes, commas or non-ASCII text in its subject | let in; the distinguished name is escaped (RFC 4514) to printable ASCII |
//! | with thousands of names | let in, as far as it fits the TLS library's bound on a handshake message |
//!
//! # Revocation
//!
//! With `revocation_lists` or `distribution_points`, every certificate of a chain but the root needs
//! a valid list of the authority that signed it; so an intermediate without a list makes every chain
//! through it fail, and a list of the root alone is not enough. A list that is missing, past its
//! `nextUpdate`, or not signed by its authority refuses (`revocation_unknown`), unless
//! `unknown_status` says otherwise; a file that cannot be read or parsed does not load, and on a
//! reload what was in force stays. With `ocsp` the client's own certificate may do without a list.
//! Delta lists, indirect lists and lists for some reasons only are refused.
//!
//! What is in force counts for new handshakes, for sessions that are resumed, and for connections
//! that are already open: see [`clients`].

mod certificate;
pub mod client;
pub mod clients;
mod der;
mod handshake;
mod pem;
mod resolver;
pub mod server;
mod signed;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificate::{PeerCertificate, Sans};
pub use clients::{Believer, ClientTrust, Lapse, Standing};
pub use handshake::{HandshakeFault, Session};

/// Why certificates or keys cannot be used. Never holds what was in a file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text is not PEM: a broken section or broken base64.
    #[error("not readable as PEM")]
    Pem,
    /// There is no certificate in it.
    #[error("no certificate in PEM form was found")]
    NoCertificate,
    /// There is no private key in it.
    #[error("no private key in PEM form was found")]
    NoKey,
    /// There is no revocation list in it.
    #[error("no revocation list in PEM form was found")]
    NoRevocationList,
    /// A certificate that cannot be parsed, or a part of it that we would have to rely on.
    #[error("certificate {0} cannot be parsed")]
    Certificate(usize),
    /// A revocation list that cannot be read, or of a kind that is not supported.
    #[error("a revocation list cannot be read, or is of a kind that is not supported")]
    RevocationList,
    /// What the TLS library says about the verifier of servers' certificates.
    #[error(transparent)]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The private key is of another pair.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// An RSA key below [`MINIMUM_RSA_BITS`].
    #[error("the RSA key has {0} bits, fewer than 2048")]
    WeakKey(usize),
    /// What the TLS library says; it names no secrets.
    #[error(transparent)]
    Library(#[from] rustls::Error),
}

/// The least size of an RSA key that we present or trust (NIST SP 800-57: 112 bits of security).
pub const MINIMUM_RSA_BITS: usize = 2048;

/// The one provider of cryptography. Given explicitly everywhere: a process-wide default could be
/// set by any library that we link.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}
