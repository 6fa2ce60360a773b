//! A caller of the admin listener: what `portcullis revoke` speaks through.
//!
//! One request, one connection, plain HTTP/1.1 as the listener serves it, with a deadline on every
//! read and write and a bound on the answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::Admin;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the listener may say nothing. It waits for a disk, at most, and for less time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest answer.
const MAX_ANSWER: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing listens for us.
    #[error("the configuration has no admin listener: set `admin.address`")]
    NoListener,
    /// The listener cannot be reached, or broke off.
    #[error("the admin listener at {address} cannot be asked: {source}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something else than an admin listener answered.
    #[error("{0} is no admin listener of ours")]
    Strange(SocketAddr),
}

/// Asks an admin listener, with the token that the configuration has: status and document.
///
/// # Errors
/// [`AskError`].
pub fn ask(
    admin: &Admin,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<(u16, Value), AskError> {
    let address = admin.address.ok_or(AskError::NoListener)?;
    let answer = exchange(admin, address, method, path, body)
        .map_err(|source| AskError::Io { address, source })?;
    read(&answer).ok_or(AskError::Strange(address))
}

fn exchange(
    admin: &Admin,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &Value,
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    )
    .into_bytes();
    if let Some(token) = &admin.token {
        request.extend_from_slice(b"authorization: Bearer ");
        request.extend_from_slice(token.expose());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body.as_bytes());
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

fn read(answer: &[u8]) -> Option<(u16, Value)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, serde_json::from_str(body).ok()?))
}
