//! Clients that write literal bytes and read literal answers.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

/// A parsed HTTP/1.1 answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "not JSON ({error}): {}",
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The problem document's `code`.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// A blocking connection, plain or TLS.
pub enum Connection {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Connection {
    pub fn plain(address: SocketAddr) -> Self {
        Self::Plain(tcp(address))
    }

    /// A TLS connection; the handshake is finished, so a refused certificate is an error here or on
    /// the first read (TLS 1.3 tells the client late).
    pub fn tls(
        address: SocketAddr,
        name: &str,
        config: &Arc<rustls::ClientConfig>,
    ) -> std::io::Result<Self> {
        let mut socket = tcp(address);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut session = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self::Tls(Box::new(rustls::StreamOwned::new(
            session, socket,
        ))))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        // The other side may have refused and closed already; the answer tells.
        let _ = self.write_all(bytes.as_ref()).and_then(|()| self.flush());
        self
    }

    /// Reads one answer; `None` when the connection ended before its head was complete.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    pub fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.byte()?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(n, v)| (n.to_owned(), v.trim().to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        if status < 200 {
            return self.answer_to(method);
        }
        if method == "HEAD" || status == 204 || status == 304 {
            return Some(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(self.byte()?);
                }
                let line = String::from_utf8_lossy(&line).into_owned();
                let size = usize::from_str_radix(line.trim(), 16).ok()?;
                for _ in 0..size {
                    answer.body.push(self.byte()?);
                }
                if size == 0 {
                    let mut trailers = b"\r\n".to_vec();
                    while !trailers.ends_with(b"\r\n\r\n") {
                        trailers.push(self.byte()?);
                    }
                    for line in String::from_utf8_lossy(&trailers).trim().split("\r\n") {
                        if let Some((name, value)) = line.split_once(':') {
                            answer
                                .headers
                                .push((name.to_owned(), value.trim().to_owned()));
                        }
                    }
                    return Some(answer);
                }
                self.byte()?;
                self.byte()?;
            }
        }
        match answer
            .header("content-length")
            .map(|l| l.parse::<usize>().unwrap())
        {
            Some(length) => {
                for _ in 0..length {
                    answer.body.push(self.byte()?);
                }
            }
            None => {
                while let Some(byte) = self.byte() {
                    answer.body.push(byte);
                }
            }
        }
        Some(answer)
    }

    /// Whether the other side has closed, or closes within five seconds, without another byte.
    pub fn closes(&mut self) -> bool {
        self.byte().is_none()
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.read(&mut byte) {
            Ok(1) => Some(byte[0]),
            Ok(_) => None,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no byte within ten seconds")
            }
            Err(_) => None,
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

/// A request line with headers, ready to send: `get("/x", &[("a", "b")])`.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        text.push_str("Host: api.example.test\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n"
}
