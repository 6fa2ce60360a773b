//! HTTP/2 connections with several streams each, as far as a load needs it.
//!
//! Written on frames, because a client that builds and parses whole messages takes more time than the
//! proxies that are to be measured. The headers that never change are indexed as any client does it;
//! tokens in rotation are sent in full.

use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::huffman;
use super::net::Io;
use super::pace::{Job, Turn};
use super::{PATIENCE, Plan};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const ACK: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// RFC 9113, 6.5.2.
const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;
/// RFC 7541: the first index of the dynamic table.
const FIRST_DYNAMIC: usize = 62;
/// Stream ids end at 2^31; the connection is made anew before.
const LAST_STREAM: u32 = 1 << 30;

/// The field blocks of the requests of one plan.
#[derive(Debug)]
pub(crate) struct Fields {
    /// `:authority`, `:path` and the headers that never change, as literals that are indexed.
    literals: Vec<Vec<u8>>,
    /// `authorization` of each token.
    tokens: Vec<Vec<u8>>,
    scheme: u8,
}

impl Fields {
    /// Headers are names in lower case and values.
    pub(crate) fn new(
        tls: bool,
        path: &str,
        headers: &[(String, String)],
        tokens: &[String],
    ) -> Self {
        let mut literals = vec![
            [&[0x41][..], &string(b"localhost")].concat(),
            [&[0x44][..], &string(path.as_bytes())].concat(),
        ];
        for (name, value) in headers {
            literals.push(
                [
                    &[0x40][..],
                    &string(name.as_bytes()),
                    &string(value.as_bytes()),
                ]
                .concat(),
            );
        }
        let bearer = |token: &String| string(format!("Bearer {token}").as_bytes());
        if let [token] = tokens {
            // One caller: indexed too.
            literals.push([&[0x40 | 23][..], &bearer(token)].concat());
        }
        let tokens = if tokens.len() > 1 {
            tokens
                .iter()
                .map(|token| [&[0x0f, 0x08][..], &bearer(token)].concat())
                .collect()
        } else {
            Vec::new()
        };
        Self {
            literals,
            tokens,
            scheme: if tls { 0x87 } else { 0x86 },
        }
    }

    fn first(&self, number: usize) -> Vec<u8> {
        [
            &[0x82, self.scheme][..],
            &self.literals.concat(),
            self.token(number),
        ]
        .concat()
    }

    fn later(&self) -> Vec<u8> {
        let mut block = vec![0x82, self.scheme];
        let count = self.literals.len();
        block.extend((0..count).map(|at| 0x80 | (FIRST_DYNAMIC + count - 1 - at) as u8));
        block
    }

    fn token(&self, number: usize) -> &[u8] {
        if self.tokens.is_empty() {
            &[]
        } else {
            &self.tokens[number % self.tokens.len()]
        }
    }
}

/// A string literal (RFC 7541, 5.2).
fn string(text: &[u8]) -> Vec<u8> {
    let short = huffman::encode(text).filter(|code| code.len() < text.len());
    let (mark, bytes) = match &short {
        Some(code) => (0x80, code.as_slice()),
        None => (0, text),
    };
    let mut out = Vec::with_capacity(bytes.len() + 3);
    if bytes.len() < 127 {
        out.push(mark | bytes.len() as u8);
    } else {
        out.push(mark | 127);
        let mut rest = bytes.len() - 127;
        while rest >= 128 {
            out.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(bytes);
    out
}

fn head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(length as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

/// One connection's state.
struct Link<'a> {
    plan: &'a Plan,
    fields: &'a Fields,
    later: Vec<u8>,
    /// Whether the indexed headers are in the peer's table; never when the table is too small.
    indexed: bool,
    small_table: bool,
    next: u32,
    under_way: HashMap<u32, (Job, u16)>,
    credit: u64,
    out: BytesMut,
    going_away: bool,
}

/// Sends what [`Plan::pace`] gives for ever.
pub(crate) async fn run(plan: Rc<Plan>) {
    loop {
        let Some(stream) = plan.dial().await else {
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let fields = &plan.fields;
        let mut link = Link {
            plan: &plan,
            fields,
            later: fields.later(),
            indexed: false,
            small_table: false,
            next: 1,
            under_way: HashMap::new(),
            credit: 0,
            out: BytesMut::with_capacity(64 << 10),
            going_away: false,
        };
        match link.converse(stream).await {
            Ok(()) => {}
            Err(error) => {
                for _ in link.under_way.drain() {
                    plan.pace.failed(&error);
                }
            }
        }
    }
}

impl Link<'_> {
    /// Ends when the peer wants a new connection.
    async fn converse(&mut self, mut stream: Box<dyn Io>) -> io::Result<()> {
        self.out.put_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        head(&mut self.out, 6, SETTINGS, 0, 0);
        self.out.put_u16(INITIAL_WINDOW_SIZE);
        self.out.put_u32(0x7fff_ffff);
        self.window(0x7fff_ffff - 0xffff);
        stream.write_all_buf(&mut self.out).await?;
        stream.flush().await?;
        let mut input = BytesMut::with_capacity(64 << 10);
        // The peer's settings come first and say how large its table is.
        while self.frames(&mut input)? == 0 {
            if stream.read_buf(&mut input).await? == 0 {
                return Err(io::Error::other("closed before its settings"));
            }
        }
        self.plan.connected();
        loop {
            self.fill();
            if self.going_away && self.under_way.is_empty() {
                return Ok(());
            }
            if !self.out.is_empty() {
                stream.write_all_buf(&mut self.out).await?;
                stream.flush().await?;
            }
            input.reserve(16 << 10);
            let waiting = self.under_way.len() < self.plan.streams;
            tokio::select! {
                read = stream.read_buf(&mut input) => {
                    if read? == 0 {
                        return Err(io::Error::other("closed by the peer"));
                    }
                    self.frames(&mut input)?;
                }
                () = self.plan.pace.changed.notified(), if waiting => {}
            }
        }
    }

    /// Sends requests as far as there are any.
    fn fill(&mut self) {
        while self.under_way.len() < self.plan.streams && !self.going_away {
            match self.plan.pace.turn() {
                Turn::Send(job) => self.send(job),
                Turn::Wait => return,
            }
        }
    }

    fn send(&mut self, job: Job) {
        let first;
        let (block, token): (&[u8], &[u8]) = if self.indexed && !self.small_table {
            (&self.later, self.fields.token(job.number))
        } else {
            first = self.fields.first(job.number);
            (&first, &[])
        };
        self.indexed = true;
        head(
            &mut self.out,
            block.len() + token.len(),
            HEADERS,
            END_HEADERS | END_STREAM,
            self.next,
        );
        self.out.put_slice(block);
        self.out.put_slice(token);
        self.under_way.insert(self.next, (job, 0));
        self.next += 2;
        self.going_away |= self.next > LAST_STREAM;
    }

    fn window(&mut self, more: u32) {
        head(&mut self.out, 4, WINDOW_UPDATE, 0, 0);
        self.out.put_u32(more);
    }

    /// Works off all whole frames and says how many there were.
    fn frames(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        let mut count = 0;
        while input.len() >= 9 {
            let length =
                usize::from(input[0]) << 16 | usize::from(input[1]) << 8 | usize::from(input[2]);
            if input.len() < 9 + length {
                break;
            }
            let (kind, flags) = (input[3], input[4]);
            let stream = u32::from_be_bytes([input[5], input[6], input[7], input[8]]) & 0x7fff_ffff;
            input.advance(9);
            let payload = input.split_to(length);
            self.frame(kind, flags, stream, &payload)?;
            count += 1;
        }
        Ok(count)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        match kind {
            DATA => {
                self.plan.pace.book.borrow_mut().received += payload.len() as u64;
                self.credit += payload.len() as u64;
                if self.credit > 1 << 29 {
                    self.window(1 << 29);
                    self.credit -= 1 << 29;
                }
                if flags & END_STREAM != 0 {
                    self.end(stream);
                }
            }
            HEADERS => {
                let mut block = payload;
                if flags & PADDED != 0 {
                    block = block.get(1..).unwrap_or_default();
                }
                if flags & PRIORITY != 0 {
                    block = block.get(5..).unwrap_or_default();
                }
                if let Some((_, found)) = self.under_way.get_mut(&stream)
                    && *found == 0
                {
                    *found = status(block);
                }
                if flags & END_STREAM != 0 {
                    self.end(stream);
                }
            }
            RST_STREAM if self.under_way.remove(&stream).is_some() => {
                self.plan.pace.failed(&io::Error::other("stream reset"));
            }
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    let name = u16::from_be_bytes([setting[0], setting[1]]);
                    let value =
                        u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                    self.small_table |= name == HEADER_TABLE_SIZE && value < 4096;
                }
                head(&mut self.out, 0, SETTINGS, ACK, 0);
            }
            PING if flags & ACK == 0 => {
                head(&mut self.out, payload.len(), PING, ACK, 0);
                self.out.put_slice(payload);
            }
            GOAWAY => {
                self.going_away = true;
                if payload.get(4..8).is_some_and(|code| code != [0; 4]) {
                    return Err(io::Error::other("the peer said that we err"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if let Some((job, status)) = self.under_way.remove(&stream) {
            self.plan.pace.answered(job, status);
        }
    }
}

/// The status at the beginning of a field block. Only those of the static table and literals are
/// understood; 1 stands for all others.
fn status(block: &[u8]) -> u16 {
    let mut block = block;
    while block.first().is_some_and(|byte| byte & 0xe0 == 0x20) {
        block = block.get(1..).unwrap_or_default();
    }
    match block.first() {
        Some(0x88) => 200,
        Some(0x89) => 204,
        Some(0x8a) => 206,
        Some(0x8b) => 304,
        Some(0x8c) => 400,
        Some(0x8d) => 404,
        Some(0x8e) => 500,
        Some(0x08 | 0x18 | 0x48) => literal(block.get(1..).unwrap_or_default()).unwrap_or(1),
        _ => 1,
    }
}

fn literal(text: &[u8]) -> Option<u16> {
    let (length, rest) = text.split_first()?;
    let bytes = rest.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(bytes).ok()?.parse().ok();
    }
    // Three digits, Huffman coded: try them all.
    (100..600).find(|status: &u16| {
        huffman::encode(status.to_string().as_bytes()).is_some_and(|code| code == bytes)
    })
}
