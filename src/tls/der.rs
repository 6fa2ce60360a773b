//! Just enough DER to walk through what is signed without losing the signed bytes, and to write a
//! question to a responder. What has a parser in a library is parsed by it.

use x509_parser::asn1_rs::Any;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const ENUMERATED: u8 = 0x0a;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;

/// The tag of a constructed element with a context number below 31.
pub(super) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// One element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'d> {
    /// The identifier octet.
    pub(super) tag: u8,
    /// With identifier and length.
    pub(super) whole: &'d [u8],
    /// Without.
    pub(super) content: &'d [u8],
}

impl<'d> Element<'d> {
    pub(super) fn inside(self) -> Reader<'d> {
        Reader(self.content)
    }

    /// Seconds since 1970 of a time.
    pub(super) fn time(self) -> Option<i64> {
        match ASN1Time::from_der(self.whole) {
            Ok(([], time)) => Some(time.timestamp()),
            _ => None,
        }
    }

    /// The bits of a bit string of whole bytes, as keys and signatures are.
    pub(super) fn bits(self) -> Option<&'d [u8]> {
        match self.content {
            [0, bits @ ..] if self.tag == BIT_STRING => Some(bits),
            _ => None,
        }
    }
}

/// Walks through the elements of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'d>(pub(super) &'d [u8]);

impl<'d> Reader<'d> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn peek(self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element, whatever it is.
    pub(super) fn any(&mut self) -> Option<Element<'d>> {
        let text = self.0;
        let tag = *text.first()?;
        // Numbers of 31 and more take several octets; nothing that we read has them.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (rest, any) = Any::from_der(text).ok()?;
        let whole = text.get(..text.len().checked_sub(rest.len())?)?;
        let content = whole.get(whole.len().checked_sub(any.data.len())?..)?;
        self.0 = rest;
        Some(Element {
            tag,
            whole,
            content,
        })
    }

    /// The next element, which must have this tag.
    pub(super) fn next(&mut self, tag: u8) -> Option<Element<'d>> {
        (self.peek()? == tag).then(|| self.any())?
    }

    /// The next element if it has this tag; `None` inside when it is broken.
    pub(super) fn optional(&mut self, tag: u8) -> Option<Option<Element<'d>>> {
        if self.peek() == Some(tag) {
            self.any().map(Some)
        } else {
            Some(None)
        }
    }

    /// The one element of the text.
    pub(super) fn only(mut self, tag: u8) -> Option<Element<'d>> {
        let found = self.next(tag)?;
        self.is_empty().then_some(found)
    }
}

/// An element around `parts`.
pub(super) fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut text = Vec::with_capacity(length + 6);
    text.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => text.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let significant = bytes.get(zeros..).unwrap_or_default();
            text.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            text.extend_from_slice(significant);
        }
    }
    for part in parts {
        text.extend_from_slice(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_broken_lengths_are_refused() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let text = wrap(SEQUENCE, &[&vec![7; length]]);
            let element = Reader(&text).only(SEQUENCE).unwrap();
            assert_eq!(element.content.len(), length);
            assert_eq!(element.whole, &text[..]);
        }
        for broken in [
            &b""[..],
            b"\x30",
            b"\x30\x05a",
            b"\x30\x80\0\0",
            b"\x3f\x01a",
            b"\x30\x00\x00",
        ] {
            assert!(Reader(broken).only(SEQUENCE).is_none(), "{broken:x?}");
        }
    }
}
