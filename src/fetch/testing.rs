//! An HTTP server on loopback that misbehaves on demand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Behaviour {
    /// Answers 200 with these header lines (each ends with CR LF) and this body.
    Serve(String, String),
    /// Reads the request, and answers so much later with this body.
    Late(Duration, String),
    /// Answers with this status and nothing else.
    Status(u16),
    /// Redirects to another document of its own.
    Redirect,
    /// Reads the request and never answers.
    Hang,
    /// Sends one byte of the body now and then, for ever.
    Drip,
    /// Announces this many bytes.
    Announce(usize),
    /// Sends chunks for ever.
    Endless,
    /// Closes the connection before the end of the body.
    Truncate,
    /// Closes the connection at once.
    Drop,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    hits: AtomicUsize,
    behaviour: Mutex<Behaviour>,
}

impl Server {
    pub(crate) async fn start(behaviour: Behaviour) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            hits: AtomicUsize::new(0),
            behaviour: Mutex::new(behaviour),
        });
        let serving = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = Arc::clone(&serving);
                tokio::spawn(async move { serving.answer(stream).await });
            }
        });
        server
    }

    pub(crate) async fn serving(body: impl Into<String>) -> Arc<Self> {
        Self::start(Behaviour::Serve(String::new(), body.into())).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Requests so far, discovery not counted.
    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub(crate) fn serve(&self, body: impl Into<String>) {
        self.behave(Behaviour::Serve(String::new(), body.into()));
    }

    async fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        if head.starts_with("GET /.well-known/openid-configuration ") {
            let body = format!(
                r#"{{"issuer":"{}","jwks_uri":"{}"}}"#,
                self.url(""),
                self.url("/jwks")
            );
            return send(&mut stream, &ok("", &body)).await;
        }
        self.hits.fetch_add(1, Ordering::SeqCst);
        let behaviour = self.behaviour.lock().unwrap().clone();
        match behaviour {
            Behaviour::Serve(headers, body) => send(&mut stream, &ok(&headers, &body)).await,
            Behaviour::Late(time, body) => {
                tokio::time::sleep(time).await;
                send(&mut stream, &ok("", &body)).await
            }
            Behaviour::Status(status) => {
                send(
                    &mut stream,
                    &format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"),
                )
                .await
            }
            Behaviour::Redirect => {
                let location = self.url("/elsewhere");
                let head = format!(
                    "HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
                );
                send(&mut stream, &head).await
            }
            Behaviour::Hang => {
                let _ = stream.read_u8().await;
                None
            }
            Behaviour::Drip => {
                send(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n",
                )
                .await?;
                loop {
                    send(&mut stream, " ").await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Behaviour::Announce(length) => {
                send(
                    &mut stream,
                    &format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{{"),
                )
                .await?;
                let _ = stream.read_u8().await;
                None
            }
            Behaviour::Endless => {
                send(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                )
                .await?;
                loop {
                    send(&mut stream, &format!("1000\r\n{}\r\n", " ".repeat(0x1000))).await?;
                }
            }
            Behaviour::Truncate => {
                send(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
                )
                .await
            }
            Behaviour::Drop => None,
        }
    }
}

fn ok(headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

async fn send(stream: &mut TcpStream, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).await.ok()
}
