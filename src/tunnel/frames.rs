//! Where the frames of a WebSocket begin and end (RFC 6455 section 5.2), and the Close frame.
//!
//! Only heads are read, nothing is unmasked and nothing is kept: what the two sides say is their own
//! affair. To know the boundaries is what it takes to say goodbye between two frames instead of in
//! the middle of one. Extensions (RFC 7692) change payloads and reserved bits, never the framing.

/// Longest reason of a Close frame: control frames have at most 125 bytes, two of them are the code.
const REASON: usize = 123;
/// Longest head: two bytes, eight of length, four of the mask.
const HEAD: usize = 14;
/// The opcode of Close.
const CLOSE: u8 = 8;

/// Whose frames are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Those of the client, which are masked (section 5.1).
    Client,
    /// Those of the upstream, which are not.
    Upstream,
}

/// The frames of one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frames {
    side: Side,
    head: [u8; HEAD],
    /// How much of the head is there.
    have: u8,
    /// How much of the payload is to come.
    left: u64,
    closed: bool,
}

/// What is sent is no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

impl Frames {
    /// Those of this side, before the first.
    pub(super) const fn of(side: Side) -> Self {
        Self {
            side,
            head: [0; HEAD],
            have: 0,
            left: 0,
            closed: false,
        }
    }

    /// Follows the next bytes.
    ///
    /// # Errors
    /// When they cannot be frames of this side. That also stops whoever sends a second request
    /// behind the one for the upgrade, in the hope that somebody reads it as such.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX);
                let here = here.min(bytes.len());
                bytes = bytes.get(here..).unwrap_or_default();
                self.left -= u64::try_from(here).unwrap_or(u64::MAX);
                continue;
            }
            bytes = rest;
            if let Some(place) = self.head.get_mut(usize::from(self.have)) {
                *place = *first;
            }
            self.have += 1;
            if self.have == 2 {
                self.check()?;
            }
            if self.have >= 2 && usize::from(self.have) == self.length_of_head() {
                self.left = self.length()?;
                self.closed |= self.opcode() == CLOSE;
                self.have = 0;
            }
        }
        Ok(())
    }

    /// Whether the bytes so far end between two frames.
    pub(super) const fn between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// At most how many bytes may be read without going past the end of the frame under way.
    pub(super) fn missing(&self) -> u64 {
        match (self.left, self.have) {
            (0, 0) => 0,
            // The head says how long it is with its second byte.
            (0, 1) => 1,
            (0, have) => u64::try_from(self.length_of_head()).unwrap_or(2) - u64::from(have),
            (left, _) => left,
        }
    }

    /// Whether a Close frame has passed.
    pub(super) const fn closed(&self) -> bool {
        self.closed
    }

    const fn opcode(&self) -> u8 {
        let [first, ..] = self.head;
        first & 0x0f
    }

    /// The first two bytes are there.
    fn check(&self) -> Result<(), Violation> {
        let [first, second, ..] = self.head;
        let masked = second & 0x80 != 0;
        let control = first & 0x08 != 0;
        let whole = first & 0x80 != 0 && second & 0x7f <= 125;
        if masked == (self.side == Side::Client) && (whole || !control) {
            Ok(())
        } else {
            Err(Violation)
        }
    }

    fn length_of_head(&self) -> usize {
        let [_, second, ..] = self.head;
        let length = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if second & 0x80 == 0 { 0 } else { 4 }
    }

    fn length(&self) -> Result<u64, Violation> {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.head;
        match second & 0x7f {
            126 => Ok(u64::from(u16::from_be_bytes([a, b]))),
            // The most significant bit must be 0.
            127 => match u64::from_be_bytes([a, b, c, d, e, f, g, h]) {
                length if length >> 63 == 0 => Ok(length),
                _ => Err(Violation),
            },
            short => Ok(u64::from(short)),
        }
    }
}

/// A Close frame as `side` sends it; `reason` is cut to what fits.
pub(super) fn close(side: Side, code: u16, reason: &str) -> Vec<u8> {
    let end = (0..=REASON.min(reason.len()))
        .rev()
        .find(|end| reason.is_char_boundary(*end));
    let reason = reason.get(..end.unwrap_or(0)).unwrap_or_default();
    let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
    let length = u8::try_from(payload.len()).unwrap_or_default();
    let mut frame = vec![0x80 | CLOSE];
    match side {
        Side::Upstream => {
            frame.push(length);
            frame.extend(payload);
        }
        Side::Client => {
            let mask: [u8; 4] = rand::random();
            frame.push(0x80 | length);
            frame.extend(mask);
            let masked = payload.iter().zip(mask.iter().cycle());
            frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(side: Side, first: u8, payload: usize) -> Vec<u8> {
        let mask = if side == Side::Client { 0x80 } else { 0 };
        let mut frame = vec![first];
        match payload {
            0..=125 => frame.push(mask | u8::try_from(payload).unwrap()),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend(u64::try_from(payload).unwrap().to_be_bytes());
            }
        }
        if side == Side::Client {
            frame.extend([1, 2, 3, 4]);
        }
        frame.extend(vec![7; payload]);
        frame
    }

    proptest! {
        #[test]
        fn boundaries_are_found_wherever_the_stream_is_cut(
            sizes in proptest::collection::vec(prop_oneof![0usize..130, 60_000usize..70_000], 1..5),
            client in any::<bool>(),
            step in 1usize..5000,
        ) {
            let side = if client { Side::Client } else { Side::Upstream };
            let stream: Vec<u8> = sizes.iter().flat_map(|size| frame(side, 0x82, *size)).collect();
            let mut ends: Vec<usize> = sizes.iter().scan(0, |end, size| {
                *end += frame(side, 0x82, *size).len();
                Some(*end)
            }).collect();
            ends.insert(0, 0);
            let mut frames = Frames::of(side);
            let mut at = 0;
            for piece in stream.chunks(step) {
                let end = ends.iter().find(|end| **end >= at).unwrap();
                prop_assert!(frames.missing() <= u64::try_from(end - at).unwrap());
                prop_assert_eq!(frames.between(), ends.contains(&at));
                prop_assert_eq!(frames.missing() == 0, frames.between());
                frames.follow(piece).unwrap();
                at += piece.len();
            }
            prop_assert!(frames.between() && !frames.closed());
        }
    }

    #[test]
    fn reading_no_more_than_is_missing_ends_at_the_boundary() {
        let stream = [frame(Side::Client, 0x81, 300), frame(Side::Client, 0x81, 5)].concat();
        for cut in 1..308 {
            let mut frames = Frames::of(Side::Client);
            frames.follow(&stream[..cut]).unwrap();
            let mut at = cut;
            while !frames.between() {
                let end = at + usize::try_from(frames.missing()).unwrap();
                frames.follow(&stream[at..end]).unwrap();
                at = end;
            }
            assert_eq!(at, 308);
        }
    }

    #[test]
    fn what_is_no_frame_of_this_side_is_refused() {
        let follow = |side, bytes: &[u8]| Frames::of(side).follow(bytes);
        assert_eq!(follow(Side::Client, b"GET / HTTP/1.1\r\n"), Err(Violation));
        assert_eq!(follow(Side::Upstream, b"HTTP/1.1 200 OK"), Err(Violation));
        assert_eq!(follow(Side::Client, &[0x81, 5]), Err(Violation));
        assert_eq!(follow(Side::Upstream, &[0x81, 0x85]), Err(Violation));
        // A control frame that is long, or goes on.
        assert_eq!(follow(Side::Upstream, &[0x89, 126]), Err(Violation));
        assert_eq!(follow(Side::Upstream, &[0x09, 1]), Err(Violation));
        let endless = [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(follow(Side::Upstream, &endless), Err(Violation));
    }

    #[test]
    fn a_close_frame_is_one() {
        for side in [Side::Client, Side::Upstream] {
            let bytes = close(side, 1008, &"ä".repeat(100));
            let mut frames = Frames::of(side);
            frames.follow(&bytes).unwrap();
            assert!(frames.between() && frames.closed());
        }
        assert_eq!(close(Side::Upstream, 1008, "no"), b"\x88\x04\x03\xf0no");
        let masked = close(Side::Client, 1001, "x");
        let plain: Vec<u8> = (0..3).map(|i| masked[6 + i] ^ masked[2 + i % 4]).collect();
        assert_eq!(plain, b"\x03\xe9x");
    }
}
