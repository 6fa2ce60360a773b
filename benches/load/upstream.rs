//! The service behind every peer: HTTP/1.1 with keep-alive, as little work as possible.
//!
//! What it answers depends on the path: `/large` anywhere in it sends [`LARGE`] bytes, `/echo` sends
//! the request's head back, all else sends 1 KiB. Request bodies are swallowed.

use std::io::{self, Write as _};
use std::net::SocketAddr;

use bytes::BytesMut;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What `/large` sends.
pub(crate) const LARGE: usize = 100 << 20;
/// How much of it is written at a time.
const PIECE: usize = 64 << 10;

/// Serves until the process ends. Must run on a `LocalSet`.
pub(crate) async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = super::net::listen(address)?;
    println_ready(listener.local_addr()?)?;
    accept(listener).await
}

fn println_ready(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready {address}")?;
    out.flush()
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    let mut small =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1024\r\n\r\n"
            .to_vec();
    small.resize(small.len() + 1024, b'x');
    let small: &'static [u8] = small.leak();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            // A peer that hangs up is its own affair.
            let _ended = converse(stream, small).await;
        });
    }
}

async fn converse(mut stream: TcpStream, small: &[u8]) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(PIECE);
    loop {
        let Some(end) = memmem::find(&buffer, b"\r\n\r\n") else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = buffer.split_to(end + 4).freeze();
        let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
        if line.starts_with(b"P") {
            swallow(&mut stream, &mut buffer, &head).await?;
        }
        if memmem::find(line, b"/large").is_some() {
            large(&mut stream).await?;
        } else if memmem::find(line, b"/echo").is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
            stream
                .write_all(&[answer.as_bytes(), &head].concat())
                .await?;
        } else {
            stream.write_all(small).await?;
        }
    }
}

/// Reads the body of a request, whichever way its length is told.
async fn swallow(stream: &mut TcpStream, buffer: &mut BytesMut, head: &[u8]) -> io::Result<()> {
    if let Some(mut left) = super::net::content_length(head) {
        loop {
            let used = left.min(buffer.len());
            drop(buffer.split_to(used));
            left -= used;
            if left == 0 {
                return Ok(());
            }
            buffer.reserve(PIECE);
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    // Chunked: bodies of the load never hold the mark that ends them.
    loop {
        if let Some(end) = memmem::find(buffer, b"0\r\n\r\n") {
            drop(buffer.split_to(end + 5));
            return Ok(());
        }
        let keep = buffer.len().min(4);
        drop(buffer.split_to(buffer.len() - keep));
        buffer.reserve(PIECE);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn large(stream: &mut TcpStream) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![b'y'; PIECE];
    for _ in 0..LARGE / PIECE {
        stream.write_all(&piece).await?;
    }
    Ok(())
}
