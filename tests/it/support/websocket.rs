//! WebSockets by hand: frames of any shape, and an upstream that opens them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::client::Connection;
use super::upstream::{Next, Seen, Upstream};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;

/// The key of RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The fields of a request for a WebSocket.
pub const ASK: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
];

/// The answer to a key.
pub fn accept(key: &str) -> String {
    let proof = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, proof.as_bytes()))
}

/// A frame; `first` is its first byte whole.
pub fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(masked | length as u8),
        length @ 126..=0xffff => {
            frame.push(masked | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(masked | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    match mask {
        None => frame.extend(payload),
        Some(mask) => {
            frame.extend(mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        }
    }
    frame
}

/// A whole message of the client's.
pub fn from_client(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x80 | opcode, payload, Some([7, 77, 0, 255]))
}

/// A whole message of the upstream's.
pub fn from_upstream(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x80 | opcode, payload, None)
}

/// The next frame: its first byte and its payload; `None` at the end of the stream.
pub fn read(stream: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    let length = match head[1] & 0x7f {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            u64::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length).ok()?;
            u64::from_be_bytes(length)
        }
        short => u64::from(short),
    };
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        stream.read_exact(&mut mask).ok()?;
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).ok()?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Some((head[0], payload))
}

/// The code and the reason of a Close frame.
#[track_caller]
pub fn closing(frame: Option<(u8, Vec<u8>)>) -> (u16, String) {
    let (first, payload) = frame.expect("no Close frame");
    assert_eq!(first, 0x80 | CLOSE, "not a Close frame: {payload:?}");
    let code = u16::from_be_bytes(payload[..2].try_into().unwrap());
    (code, String::from_utf8(payload[2..].to_vec()).unwrap())
}

/// Asks for a WebSocket with `more` fields.
pub fn ask(path: &str, more: &[(&str, &str)]) -> String {
    super::client::request("GET", path, &[&ASK[..], more].concat())
}

/// The head of an answer, and nothing behind it.
#[track_caller]
pub fn head(connection: &mut Connection) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("no whole head");
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Opens a WebSocket.
#[track_caller]
pub fn open(connection: &mut Connection, path: &str, more: &[(&str, &str)]) -> String {
    connection.send(ask(path, more));
    let head = head(connection);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    head
}

/// An upstream that opens every WebSocket it is asked for, and hands its end out.
pub struct Sockets {
    pub upstream: Upstream,
    opened: Mutex<Receiver<(Seen, TcpStream)>>,
}

impl Sockets {
    pub fn start() -> Self {
        let (sender, opened) = channel();
        let upstream = Upstream::start();
        upstream.answer(opener(sender));
        Self {
            upstream,
            opened: Mutex::new(opened),
        }
    }

    /// The next one that was opened.
    #[track_caller]
    pub fn next(&self) -> (Seen, TcpStream) {
        let wait = std::time::Duration::from_secs(10);
        let opened = self.opened.lock().unwrap().recv_timeout(wait);
        let (seen, stream) = opened.expect("no WebSocket was opened");
        stream.set_read_timeout(Some(wait)).unwrap();
        (seen, stream)
    }

    /// Whether none was opened that nobody took.
    pub fn none(&self) -> bool {
        self.opened.lock().unwrap().try_recv().is_err()
    }
}

fn opener(
    sender: Sender<(Seen, TcpStream)>,
) -> impl Fn(&Seen, &mut TcpStream) -> Next + Send + Sync {
    let sender = Arc::new(Mutex::new(sender));
    move |seen, stream| {
        let Some(key) = seen.header("sec-websocket-key") else {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
            return Next::KeepAlive;
        };
        let protocol = match seen.header("sec-websocket-protocol") {
            Some(protocols) => format!(
                "Sec-WebSocket-Protocol: {}\r\n",
                protocols.split(',').next().unwrap().trim()
            ),
            None => String::new(),
        };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n{protocol}\r\n",
            accept(key)
        );
        let _ = stream.write_all(answer.as_bytes());
        let end = stream.try_clone().unwrap();
        let _ = sender.lock().unwrap().send((seen.clone(), end));
        // The end that was handed out keeps the connection open.
        Next::Close
    }
}
