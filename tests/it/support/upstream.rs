//! A witness: an HTTP/1.1 upstream that records the raw bytes it was sent and answers as told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// One request as the upstream received it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub connection: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }
}

type Handler = dyn Fn(&Seen, &mut TcpStream) -> Next + Send + Sync;

/// What the upstream does after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    KeepAlive,
    Close,
}

/// A running upstream.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    handler: Arc<Mutex<Arc<Handler>>>,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers every request with 200 and `hello`.
    pub fn start() -> Self {
        Self::with(|seen, stream| {
            let body = if seen.line.starts_with("HEAD") {
                ""
            } else {
                "hello"
            };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}");
            if stream.write_all(answer.as_bytes()).is_err() {
                return Next::Close;
            }
            Next::KeepAlive
        })
    }

    pub fn with(handler: impl Fn(&Seen, &mut TcpStream) -> Next + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Mutex<Arc<Handler>>> = Arc::new(Mutex::new(Arc::new(handler)));
        let connections = Arc::new(AtomicUsize::new(0));
        let upstream = Self {
            address,
            seen: Arc::clone(&seen),
            handler: Arc::clone(&handler),
            connections: Arc::clone(&connections),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let id = connections.fetch_add(1, Ordering::SeqCst);
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                std::thread::spawn(move || serve(stream, id, &seen, &handler));
            }
        });
        upstream
    }

    pub fn answer(&self, handler: impl Fn(&Seen, &mut TcpStream) -> Next + Send + Sync + 'static) {
        *self.handler.lock().unwrap() = Arc::new(handler);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The last request.
    #[track_caller]
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("nothing reached the upstream")
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, id: usize, seen: &Mutex<Vec<Seen>>, handler: &Mutex<Arc<Handler>>) {
    let mut buffer = Vec::new();
    loop {
        let Some(head_end) = read_until(&mut stream, &mut buffer, |b| find(b, b"\r\n\r\n")) else {
            return;
        };
        let head: Vec<u8> = buffer.drain(..head_end + 4).collect();
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.trim_end().split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers: Vec<(String, String)> = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(n, v)| (n.to_owned(), v.trim().to_owned()))
            .collect();
        let value = |name: &str| {
            headers
                .iter()
                .find(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.clone())
        };
        let mut body = Vec::new();
        if value("transfer-encoding").is_some() {
            loop {
                let Some(end) = read_until(&mut stream, &mut buffer, |b| find(b, b"\r\n")) else {
                    return;
                };
                let size_line: Vec<u8> = buffer.drain(..end + 2).collect();
                let size = String::from_utf8_lossy(&size_line);
                let size =
                    usize::from_str_radix(size.trim().split(';').next().unwrap(), 16).unwrap();
                if read_until(&mut stream, &mut buffer, |b| {
                    (b.len() >= size + 2).then_some(0)
                })
                .is_none()
                {
                    return;
                }
                if size == 0 {
                    // Trailers, up to the empty line.
                    buffer.splice(0..0, *b"\r\n");
                    let Some(end) = read_until(&mut stream, &mut buffer, |b| find(b, b"\r\n\r\n"))
                    else {
                        return;
                    };
                    buffer.drain(..end + 4);
                    break;
                }
                body.extend(buffer.drain(..size));
                buffer.drain(..2);
            }
        } else if let Some(length) = value("content-length") {
            let length: usize = length.parse().unwrap();
            if read_until(&mut stream, &mut buffer, |b| {
                (b.len() >= length).then_some(0)
            })
            .is_none()
            {
                return;
            }
            body.extend(buffer.drain(..length));
        }
        let request = Seen {
            line,
            headers,
            body,
            connection: id,
        };
        seen.lock().unwrap().push(request.clone());
        let handler = Arc::clone(&handler.lock().unwrap());
        if handler(&request, &mut stream) == Next::Close {
            return;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn read_until(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    done: impl Fn(&[u8]) -> Option<usize>,
) -> Option<usize> {
    loop {
        if let Some(at) = done(buffer) {
            return Some(at);
        }
        let mut chunk = [0; 16384];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}
