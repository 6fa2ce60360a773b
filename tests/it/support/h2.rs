//! HTTP/2 by hand: frames of any shape, headers that no library would send.

use std::io::{Read, Write};
use std::net::SocketAddr;

use super::client::Connection;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame as it stands on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A header block of literals without indexing.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            // Seven-bit prefix integers (RFC 7541 section 5.1), no Huffman.
            if text.len() < 127 {
                out.push(text.len() as u8);
            } else {
                out.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    out.push((rest % 128 + 128) as u8);
                    rest /= 128;
                }
                out.push(rest as u8);
            }
            out.extend(text.as_bytes());
        }
    }
    out
}

/// Pseudo-headers of a plain GET, then `more`.
pub fn get<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "api.example.test"),
        (":path", path),
    ];
    fields.extend(more);
    fields
}

/// What the server did with a stream or the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

/// An HTTP/2 connection in clear text (prior knowledge).
pub struct H2 {
    pub connection: Connection,
    /// When it was made.
    pub since: std::time::Instant,
}

impl H2 {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(Connection::plain(address))
    }

    /// On a connection that is open already.
    pub fn over(mut connection: Connection) -> Self {
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        connection.send(frame(SETTINGS, 0, 0, &[]));
        Self {
            connection,
            since: std::time::Instant::now(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.connection.write_all(bytes.as_ref())?;
        self.connection.flush()
    }

    pub fn headers(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        let _ = self.send(frame(HEADERS, flags, stream, &block(fields)));
    }

    /// Reads until something final is known of `stream`.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Some((kind, flags, on, payload)) = self.read() else {
                return Outcome::Closed;
            };
            match kind {
                SETTINGS if flags & 1 == 0 => {
                    let _ = self.send(frame(SETTINGS, 1, 0, &[]));
                }
                HEADERS if on == stream => return Outcome::Status(status(&payload)),
                RST_STREAM if on == stream => {
                    return Outcome::Reset(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                }
                GOAWAY => {
                    let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                    if code != 0 {
                        return Outcome::GoAway(code);
                    }
                }
                _ => {}
            }
        }
    }

    /// The next frame; `None` at the end of the connection.
    pub fn read(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.connection.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.connection.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
        Some((head[3], head[4], stream, payload))
    }
}

/// The `:status` at the start of a header block (RFC 7541 appendices A and B).
fn status(block: &[u8]) -> u16 {
    match block[0] {
        // A dynamic table size update may stand first.
        0x20..=0x3f => status(&block[1..]),
        0x88 => 200,
        0x89 => 204,
        0x8a => 206,
        0x8b => 304,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        _ => {
            let huffman = block[1] & 0x80 != 0;
            let value = &block[2..2 + usize::from(block[1] & 0x7f)];
            if !huffman {
                return std::str::from_utf8(value).unwrap().parse().unwrap();
            }
            let bits: String = value.iter().map(|b| format!("{b:08b}")).collect();
            let (mut at, mut number) = (0, 0);
            for _ in 0..3 {
                let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
                if five <= 2 {
                    number = number * 10 + five;
                    at += 5;
                } else {
                    let six = u16::from_str_radix(&bits[at..at + 6], 2).unwrap();
                    number = number * 10 + six - 0b01_1001 + 3;
                    at += 6;
                }
            }
            number
        }
    }
}
