//! Looking at many bytes at once.
//!
//! Every head is scanned several times over. Where a text is long, a loop without branches over its
//! bytes becomes vector instructions; its last bytes, and short texts, are looked at as words of
//! eight, for a loop over single bytes would cost more than all the rest.

use memchr::memchr;

const ONES: u64 = 0x0101_0101_0101_0101;
const TOPS: u64 = 0x8080_8080_8080_8080;
/// So many bytes are a step of the loop over bytes.
const STEP: usize = 32;
/// So many are compared at once by [`find`], and so many times before it asks `memchr`.
const PIECE: usize = 16;
const NEAR: usize = 5;

/// Bytes that do not belong into a text.
#[derive(Debug, Clone, Copy)]
pub struct Odd<const N: usize = 2> {
    /// Everything below this, which is 0x80 at most.
    pub below: u8,
    /// Everything from here on, which is 0x80 at most.
    pub from: Option<u8>,
    /// And these.
    pub also: [u8; N],
}

impl<const N: usize> Odd<N> {
    /// Whether any of the bytes is odd.
    #[inline(always)]
    pub fn any(self, bytes: &[u8]) -> bool {
        let Some(last) = bytes.last_chunk::<STEP>() else {
            return any_word(bytes, |word| self.word(word));
        };
        let (steps, rest) = bytes.as_chunks::<STEP>();
        // Some of the last ones were looked at already.
        self.any_of_many(steps.as_flattened())
            || (!rest.is_empty() && any_word(last, |word| self.word(word)))
    }

    /// The least byte and the greatest one tell what a comparison of each with both bounds would, for
    /// half of the instructions.
    #[inline(always)]
    fn any_of_many(self, bytes: &[u8]) -> bool {
        let (mut least, mut greatest, mut found) = (u8::MAX, 0, false);
        for &byte in bytes {
            least = least.min(byte);
            greatest = greatest.max(byte);
            for odd in self.also {
                found |= byte == odd;
            }
        }
        least < self.below || self.from.is_some_and(|from| greatest >= from) || found
    }

    /// Top bits: none if there is no odd byte.
    #[inline(always)]
    fn word(self, word: u64) -> u64 {
        let mut found = below(word, self.below);
        if let Some(from) = self.from {
            found |= at_least(word, from);
        }
        for odd in self.also {
            found |= equal(word, odd);
        }
        found & TOPS
    }
}

/// Whether `odd` is anything but zero for any eight bytes of a text; a shorter one is filled up with
/// bytes of its own.
#[inline(always)]
pub fn any_word(bytes: &[u8], odd: impl Fn(u64) -> u64) -> bool {
    if let Some(last) = bytes.last_chunk::<8>() {
        // The last word may overlap the one before it.
        let (words, _) = bytes.as_chunks::<8>();
        let mut found = odd(u64::from_le_bytes(*last));
        for word in words {
            found |= odd(u64::from_le_bytes(*word));
        }
        return found != 0;
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let half = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
        return odd(half(first) | half(last) << 32) != 0;
    }
    let word = match *bytes {
        [a] => [a; 8],
        [a, b] => [a, b, a, a, a, a, a, a],
        [a, b, c] => [a, b, c, a, a, a, a, a],
        _ => return false,
    };
    odd(u64::from_le_bytes(word)) != 0
}

/// Where a byte stands first: as `memchr`, whose way in alone costs more than to look at a short line.
#[inline]
pub fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    let (pieces, _) = bytes.as_chunks::<PIECE>();
    let mut seen = 0;
    for piece in pieces.iter().take(NEAR) {
        // One comparison of vectors, for most pieces do not have it.
        if piece.iter().fold(false, |found, b| found | (*b == byte)) {
            for word in piece.as_chunks::<8>().0 {
                let marks = equal(u64::from_le_bytes(*word), byte) & TOPS;
                if marks != 0 {
                    // The lowest mark is true; those above it need not be.
                    let within = usize::try_from(marks.trailing_zeros() / 8).ok()?;
                    return Some(seen + within);
                }
                seen += 8;
            }
        } else {
            seen += PIECE;
        }
    }
    let rest = bytes.get(seen..)?;
    let found = match rest.len() < PIECE {
        true => rest.iter().position(|b| *b == byte),
        false => memchr(byte, rest),
    };
    found.map(|at| seen + at)
}

/// The top bits of the bytes that are in none of these ranges of ASCII, first and last.
#[inline(always)]
pub fn outside<const N: usize>(word: u64, ranges: [(u8, u8); N]) -> u64 {
    // With the top bits cleared no byte carries into the next.
    let low = word & !TOPS;
    let mut inside = 0;
    for (first, last) in &ranges {
        inside |= at_least(low, *first) & !at_least(low, *last + 1);
    }
    (!inside | word) & TOPS
}

/// The top bit of the lowest byte that is below `least`; for 0x80 at most.
#[inline(always)]
fn below(word: u64, least: u8) -> u64 {
    word.wrapping_sub(ONES * u64::from(least)) & !word
}

/// The top bit of the lowest byte that is at least this; for 1 to 0x80.
#[inline(always)]
fn at_least(word: u64, least: u8) -> u64 {
    word.wrapping_add(ONES * (0x80 - u64::from(least))) | word
}

#[inline(always)]
fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ (ONES * u64::from(byte)), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte at every place of texts of every length, against the plain way.
    fn agree(any: impl Fn(&[u8]) -> bool, odd: impl Fn(u8) -> bool) {
        for length in 0..80 {
            let mut bytes = vec![b'x'; length];
            assert!(!any(&bytes), "{length}");
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    bytes[at] = byte;
                    assert_eq!(any(&bytes), odd(byte), "{byte} at {at} of {length}");
                }
                bytes[at] = b'x';
            }
        }
    }

    #[test]
    fn an_odd_byte_is_found_wherever_it_stands_and_nothing_else() {
        let odd = Odd {
            below: 0x20,
            from: Some(0x7f),
            also: *b"\"\\",
        };
        agree(
            |bytes| odd.any(bytes),
            |b| !(0x20..0x7f).contains(&b) || b == b'"' || b == b'\\',
        );
        let odd = Odd {
            below: 0x21,
            from: None,
            also: [0x7f; 2],
        };
        agree(|bytes| odd.any(bytes), |b| b <= b' ' || b == 0x7f);
        let odd = Odd {
            below: 0x20,
            from: Some(0x7f),
            also: [],
        };
        agree(|bytes| odd.any(bytes), |b| !(0x20..0x7f).contains(&b));
    }

    #[test]
    fn the_first_of_a_byte_is_found_wherever_it_stands() {
        for length in 0..130 {
            // One off from the byte, on which borrows between bytes would show.
            let mut bytes = vec![b'\n' + 1; length];
            assert_eq!(find(b'\n', &bytes), None, "{length}");
            for at in (0..length).rev() {
                bytes[at] = b'\n';
                assert_eq!(find(b'\n', &bytes), Some(at), "{length}");
                if at + 2 < length {
                    bytes[at + 2] = b'\n' - 1;
                }
            }
        }
    }

    #[test]
    fn what_is_in_a_range_is_told_from_everything_else() {
        let ranges = [(b'a', b'z'), (b'0', b'9'), (b'-', b'-')];
        agree(
            |bytes| any_word(bytes, |word| outside(word, ranges)),
            |b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
        );
    }
}
