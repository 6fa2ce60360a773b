//! One HTTP/1.1 connection after another.

use std::io;
use std::rc::Rc;

use bytes::BytesMut;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Plan;
use super::net::{Io, content_length};
use super::pace::{Job, Turn};

/// How much is read or written at a time.
const PIECE: usize = 256 << 10;
/// The largest head of an answer.
const HEAD: usize = 64 << 10;

/// Sends what [`Plan::pace`] gives for ever.
pub(crate) async fn run(plan: Rc<Plan>) {
    let mut link: Option<Box<dyn Io>> = None;
    let mut buffer = BytesMut::with_capacity(16 << 10);
    loop {
        // Connected before the first request, unless connecting is what is measured.
        if link.is_none() && !plan.new_connections {
            link = plan.dial().await;
            buffer.clear();
            if link.is_none() {
                tokio::time::sleep(super::PATIENCE).await;
                continue;
            }
            plan.connected();
        }
        let job = match plan.pace.turn() {
            Turn::Send(job) => job,
            Turn::Wait => {
                plan.pace.changed.notified().await;
                continue;
            }
        };
        let answer = exchange(&plan, &mut link, &mut buffer, job).await;
        match answer {
            Ok((status, keep)) => {
                plan.pace.answered(job, status);
                if (!keep || plan.new_connections)
                    && let Some(mut stream) = link.take()
                {
                    let _gone = stream.shutdown().await;
                }
            }
            Err(error) => {
                plan.pace.failed(&error);
                link = None;
            }
        }
    }
}

/// The status, and whether the connection can be used again.
async fn exchange(
    plan: &Plan,
    link: &mut Option<Box<dyn Io>>,
    buffer: &mut BytesMut,
    job: Job,
) -> io::Result<(u16, bool)> {
    if link.is_none() {
        buffer.clear();
        let dialed = plan.dialer.dial().await?;
        plan.count_handshake(&dialed);
        *link = Some(dialed.stream);
    }
    let stream = link.as_mut().ok_or(io::ErrorKind::NotConnected)?;
    stream.write_all(&plan.request(job.number)).await?;
    if plan.upload > 0 {
        let piece = vec![b'z'; PIECE];
        let mut left = plan.upload;
        while left > 0 {
            let now = left.min(PIECE);
            stream.write_all(&piece[..now]).await?;
            left -= now;
        }
        plan.pace.book.borrow_mut().sent += plan.upload as u64;
    }
    stream.flush().await?;
    let head = loop {
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            break buffer.split_to(end + 4);
        }
        if buffer.len() > HEAD {
            return Err(io::Error::other("the head of an answer is too large"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::other("closed before the answer"));
        }
    };
    let status = head
        .get(9..12)
        .and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let status: u16 = status.ok_or_else(|| io::Error::other("an answer without status"))?;
    let mut received = 0;
    if let Some(length) = content_length(&head) {
        let mut left = length;
        loop {
            let used = left.min(buffer.len());
            let _body = buffer.split_to(used);
            left -= used;
            received += used;
            if left == 0 {
                break;
            }
            buffer.reserve(if left > HEAD { PIECE } else { left });
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::Error::other("closed in the middle of an answer"));
            }
        }
    } else if status != 204 && status != 304 {
        // Chunked: only refusals come like this.
        loop {
            if let Some(end) = memmem::find(buffer, b"0\r\n\r\n") {
                let _body = buffer.split_to(end + 5);
                break;
            }
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::Error::other("closed in the middle of an answer"));
            }
        }
    }
    plan.pace.book.borrow_mut().received += received as u64;
    let close = memmem::find(&head, b"onnection: close").is_some();
    Ok((status, !close))
}
