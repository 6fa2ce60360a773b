//! Where the messages of a stream end, so that ours does not stand in the middle of one.

use bytes::Bytes;

/// Follows what an upstream sends.
#[derive(Debug)]
pub(super) enum Words {
    /// An event stream (WHATWG HTML, section 9.2): messages end with an empty line.
    Events(Tail),
    /// A gRPC call: messages have a head of five bytes with their length.
    Grpc(Messages),
    /// Nothing can be said in it.
    Silent,
}

impl Words {
    /// The client has been sent these bytes too.
    pub(super) fn sent(&mut self, data: &Bytes) {
        match self {
            Self::Events(tail) => tail.sent(data),
            Self::Grpc(messages) => messages.sent(data),
            Self::Silent => {}
        }
    }

    /// Whether no message is under way.
    pub(super) fn between(&self) -> bool {
        match self {
            Self::Events(tail) => tail.between(),
            Self::Grpc(messages) => messages.between(),
            Self::Silent => true,
        }
    }
}

/// The end of an event stream so far: whether it is an empty line, in any of the three spellings.
#[derive(Debug, Default)]
pub(super) struct Tail {
    last: [u8; 4],
    begun: bool,
}

impl Tail {
    fn sent(&mut self, data: &[u8]) {
        self.begun |= !data.is_empty();
        let from = data.len().saturating_sub(self.last.len());
        for byte in data.iter().skip(from) {
            let [_, second, third, fourth] = self.last;
            self.last = [second, third, fourth, *byte];
        }
    }

    fn between(&self) -> bool {
        !self.begun
            || self.last == *b"\r\n\r\n"
            || self.last.ends_with(b"\n\n")
            || self.last.ends_with(b"\r\r")
    }
}

/// The head of a gRPC message: a flag and four bytes of length.
const GRPC_HEAD: usize = 5;

/// How far the message under way is.
#[derive(Debug, Default)]
pub(super) struct Messages {
    head: [u8; GRPC_HEAD],
    /// How much of the head is here; all of it while the message itself is under way.
    seen: usize,
    /// What is missing of the message.
    left: u32,
}

impl Messages {
    fn sent(&mut self, mut data: &[u8]) {
        while let Some((first, rest)) = data.split_first() {
            if self.seen < GRPC_HEAD {
                if let Some(place) = self.head.get_mut(self.seen) {
                    *place = *first;
                }
                self.seen += 1;
                data = rest;
                if self.seen == GRPC_HEAD {
                    let [_, a, b, c, d] = self.head;
                    self.left = u32::from_be_bytes([a, b, c, d]);
                }
            } else {
                let here = u32::try_from(data.len()).unwrap_or(u32::MAX).min(self.left);
                self.left -= here;
                data = data
                    .get(usize::try_from(here).unwrap_or(data.len())..)
                    .unwrap_or_default();
            }
            if self.seen == GRPC_HEAD && self.left == 0 {
                self.seen = 0;
            }
        }
    }

    fn between(&self) -> bool {
        self.seen == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pieces: &[&[u8]]) -> bool {
        let mut tail = Tail::default();
        for piece in pieces {
            tail.sent(piece);
        }
        tail.between()
    }

    #[test]
    fn an_event_ends_with_an_empty_line_however_it_is_cut() {
        assert!(tail(&[]));
        assert!(!tail(&[b"data: 1\n"]));
        assert!(tail(&[b"data: 1\n\n"]));
        assert!(tail(&[b"data: 1\n", b"\n"]));
        assert!(tail(&[b"data: 1\r\n\r", b"\n"]));
        assert!(tail(&[b"data: 1\r\r"]));
        assert!(!tail(&[b"data: 1\n\n", b"data"]));
        assert!(!tail(&[b"data: 1\r\n"]));
    }

    fn messages(pieces: &[&[u8]]) -> bool {
        let mut messages = Messages::default();
        for piece in pieces {
            messages.sent(piece);
        }
        messages.between()
    }

    #[test]
    fn a_grpc_message_ends_where_its_length_says() {
        assert!(messages(&[]));
        assert!(!messages(&[&[0, 0, 0]]));
        assert!(messages(&[&[0, 0, 0], &[0, 0]]));
        assert!(!messages(&[&[0, 0, 0, 0, 2, 1]]));
        assert!(messages(&[&[0, 0, 0, 0, 2, 1], &[2]]));
        assert!(messages(&[&[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]));
        assert!(!messages(&[&[0, 0, 0, 0, 1, 1, 1]]));
    }
}
