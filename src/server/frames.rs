//! The budget of an HTTP/2 connection for frames that bring nothing.
//!
//! The HTTP/2 library ends floods of resets, headers and empty DATA by itself. SETTINGS, PING,
//! WINDOW_UPDATE, PRIORITY and unknown frames it answers or ignores for as long as they come. Here
//! each of those costs one from a budget, which refills with time and with what moves the connection
//! on: requests, and answers that the client takes.

use std::time::Instant;

/// The connection preface of a client (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADER_LEN: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What one request gives back: room for its WINDOW_UPDATE and PRIORITY.
const PER_REQUEST: u32 = 8;
/// What taking a request back costs: more than the request gave. A client that asks and resets, at
/// whatever pace keeps it below the library's count of streams not yet accepted, would otherwise
/// have us decide and connect for nothing as often as it likes.
const PER_RESET: u32 = PER_REQUEST + 1;
/// So many bytes of answers give back one: clients acknowledge what they read by WINDOW_UPDATE.
const BYTES_PER_TOKEN: u64 = 256;

/// The watcher of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    header: [u8; HEADER_LEN],
    /// The most that the budget holds.
    burst: u32,
    left: u32,
    refilled_at: Instant,
    refilled_bytes: u64,
    /// In a header block that has not ended.
    open_block: bool,
}

#[derive(Debug)]
enum State {
    Preface(usize),
    Header(usize),
    Payload { left: usize, of_block: bool },
}

/// The connection has sent too much that brings nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OverBudget;

impl Frames {
    pub(super) fn new(burst: u32, now: Instant) -> Self {
        Self {
            state: State::Preface(0),
            header: [0; HEADER_LEN],
            burst,
            left: burst,
            refilled_at: now,
            refilled_bytes: 0,
            open_block: false,
        }
    }

    /// Watches the next bytes; `written` is what the connection has sent so far.
    pub(super) fn scan(&mut self, mut bytes: &[u8], written: u64) -> Result<(), OverBudget> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Preface(seen) => {
                    let here = (PREFACE.len() - *seen).min(bytes.len());
                    *seen += here;
                    bytes = bytes.get(here..).unwrap_or_default();
                    if *seen == PREFACE.len() {
                        self.state = State::Header(0);
                    }
                }
                State::Header(seen) => {
                    let here = (HEADER_LEN - *seen).min(bytes.len());
                    let (head, rest) = bytes.split_at(here);
                    for (to, from) in self.header.iter_mut().skip(*seen).zip(head) {
                        *to = *from;
                    }
                    *seen += here;
                    bytes = rest;
                    if *seen == HEADER_LEN {
                        self.frame(written)?;
                    }
                }
                State::Payload { left, .. } => {
                    let here = (*left).min(bytes.len());
                    *left -= here;
                    bytes = bytes.get(here..).unwrap_or_default();
                    if *left == 0 {
                        self.state = State::Header(0);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the preface has arrived.
    pub(super) fn begun(&self) -> bool {
        !matches!(self.state, State::Preface(_))
    }

    /// Whether a header block has begun and not ended.
    pub(super) fn mid_head(&self) -> bool {
        self.open_block || matches!(self.state, State::Payload { of_block: true, .. })
    }

    fn frame(&mut self, written: u64) -> Result<(), OverBudget> {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let of_block = kind == HEADERS || kind == CONTINUATION;
        if of_block {
            self.open_block = flags & END_HEADERS == 0;
        }
        self.state = if length == 0 {
            State::Header(0)
        } else {
            State::Payload {
                left: length,
                of_block,
            }
        };
        match kind {
            HEADERS => {
                self.left = self.left.saturating_add(PER_REQUEST).min(self.burst);
                Ok(())
            }
            DATA if length > 0 || flags & END_STREAM != 0 => Ok(()),
            RST_STREAM => (0..PER_RESET).try_for_each(|_| self.spend(written)),
            _ => self.spend(written),
        }
    }

    fn spend(&mut self, written: u64) -> Result<(), OverBudget> {
        if self.left == 0 {
            // Only now, so that an ordinary connection never reads the clock for this.
            let now = Instant::now();
            let elapsed = now.duration_since(self.refilled_at).as_millis();
            let by_time = u128::from(self.burst) * elapsed / 10_000;
            let by_bytes =
                u128::from(written.saturating_sub(self.refilled_bytes) / BYTES_PER_TOKEN);
            let refill = u32::try_from(by_time + by_bytes).unwrap_or(u32::MAX);
            if refill == 0 {
                return Err(OverBudget);
            }
            self.left = refill.min(self.burst);
            self.refilled_at = now;
            self.refilled_bytes = written;
        }
        self.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn begun(burst: u32) -> Frames {
        let mut frames = Frames::new(burst, Instant::now());
        frames.scan(PREFACE, 0).unwrap();
        frames
    }

    fn survives(flood: &[u8], times: usize, step: usize) -> bool {
        let mut frames = begun(1000);
        let stream = flood.repeat(times);
        stream
            .chunks(step)
            .all(|piece| frames.scan(piece, 0).is_ok())
    }

    #[test]
    fn floods_that_bring_nothing_end() {
        for (kind, payload) in [
            (4, &b"123456"[..]),
            (6, b"12345678"),
            (8, b"1234"),
            (2, b"12345"),
        ] {
            let flood = frame(kind, 0, payload);
            assert!(survives(&flood, 900, 7), "kind {kind}");
            assert!(!survives(&flood, 5000, 7), "kind {kind}");
        }
        assert!(!survives(&frame(0x42, 0, &[0; 100]), 5000, 1000));
        assert!(!survives(&frame(DATA, 0, b""), 5000, 1000));
    }

    #[test]
    fn frames_that_move_the_connection_on_are_free() {
        assert!(survives(&frame(DATA, 0, b"x"), 20_000, 100));
        let request = [
            frame(HEADERS, END_STREAM | END_HEADERS, b"x"),
            frame(8, 0, b"1234"),
        ]
        .concat();
        assert!(survives(&request, 20_000, 100));
        // A download of 10 MiB with a WINDOW_UPDATE for every 1 KiB.
        let mut frames = begun(1000);
        let update = frame(8, 0, b"1234");
        assert!((0..10_000).all(|round| frames.scan(&update, round << 10).is_ok()));
    }

    #[test]
    fn requests_that_are_taken_back_one_after_the_other_end() {
        let request = frame(HEADERS, END_HEADERS | END_STREAM, b"head");
        let pair = [request.clone(), frame(RST_STREAM, 0, &[0, 0, 0, 8])].concat();
        assert!(!survives(&pair, 2000, 23));
        // A few cancelled among many that are not are an ordinary page being left.
        let page = [request.repeat(4), pair].concat();
        assert!(survives(&page, 2000, 23));
    }

    #[test]
    fn header_blocks_are_open_until_their_end() {
        let mut frames = begun(1000);
        assert!(frames.begun() && !frames.mid_head());
        frames.scan(&frame(HEADERS, 0, b"abc"), 0).unwrap();
        assert!(frames.mid_head());
        frames
            .scan(&frame(CONTINUATION, END_HEADERS, b"abc"), 0)
            .unwrap();
        assert!(!frames.mid_head());
        let whole = frame(HEADERS, END_HEADERS, b"abc");
        frames.scan(&whole[..10], 0).unwrap();
        assert!(frames.mid_head());
        frames.scan(&whole[10..], 0).unwrap();
        assert!(!frames.mid_head());
    }
}
