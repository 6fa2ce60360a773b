//! The lines of a ledger, and the chain that runs through them.
//!
//! A segment is a file of lines. Records are as everywhere; between them stand lines of the ledger's
//! own, each an object with one member that names its kind:
//!
//! | line | when | what it says |
//! | --- | --- | --- |
//! | `ledger` | first in each segment | which ledger, which segment, and the hash it goes on from |
//! | `block` | after each batch of records | how many they are, and a checksum (CRC-32) of each |
//! | `seal` | every so often | a signature (Ed25519) over everything before it |
//! | `dropped` | when old segments are removed | which |
//! | `note` | when it happens | how many records are not here, and which a sink will never have |
//!
//! All end in a hash: SHA-256 over the previous hash and every byte since, up to the hash itself. So
//! whatever is changed, left out, added or moved, the next hash is not what it says. The checksums
//! prove nothing; they tell which record it was.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// A link of the chain.
pub(super) type Hash = [u8; 32];

/// What the first hash of a ledger goes on from.
pub(super) const NOTHING: Hash = [0; 32];

/// What a signature is over, before the hash and the line.
const SEAL: &[u8] = b"portcullis ledger seal 1\n";

/// What stands between a line of the ledger's own and its hash.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";

/// What stands between a seal and its signature.
const BEFORE_SIGNATURE: &[u8] = b",\"signature\":\"";

/// Longest line, in bytes; those of records are far shorter, a block's is where many are short.
pub(super) const MAX_LINE: usize = 4 << 20;

/// A line of the ledger's own, without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Own {
    Ledger(Opening),
    Block(Block),
    Seal(Seal),
    Dropped(Dropped),
    Note(Note),
}

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opening {
    /// Of this format: 1.
    pub(super) version: u32,
    /// 32 random hex digits: another ledger's segment is told from ours.
    pub(super) id: String,
    /// From 1.
    pub(super) segment: u64,
    /// The number of the next record. Records are numbered from 1.
    pub(super) next: u64,
    pub(super) time: String,
    /// The last hash of the segment before; zeros in the first.
    pub(super) previous: String,
    /// The segment before did not verify when this one was begun, or ended in the midst.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) broken: Option<String>,
}

/// What comes after a batch of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    /// The number of its first record.
    pub(super) first: u64,
    pub(super) records: u64,
    pub(super) time: String,
    /// The process ended before it could write this line; another one wrote it at its start.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(super) recovered: bool,
    /// Bytes of a line that was begun then, and was cut off.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub(super) torn: u64,
    /// CRC-32 of each record's line, its line break included: 8 hex digits each.
    pub(super) lines: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A signature over everything before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// How many records the ledger has.
    pub(super) records: u64,
    pub(super) time: String,
    /// Thumbprint of the key (RFC 7638).
    pub(super) kid: String,
    /// The public key that signs from here on, base64url (RFC 8037 `x`): a rotation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) next_key: Option<String>,
    /// Added when the rest is written.
    #[serde(skip_serializing, default)]
    pub(super) signature: String,
}

/// Old segments were removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dropped {
    /// First and last.
    pub(super) segments: (u64, u64),
    /// The number of the last record in them.
    pub(super) last: u64,
    pub(super) time: String,
}

/// What became of records that are not where somebody would look for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::audit) struct Note {
    pub(in crate::audit) time: String,
    /// Records that were lost since the last note, for there was no room for them.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub(in crate::audit) lost: u64,
    /// Records that were left out by sampling since the last note, by route.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub(in crate::audit) sampled: BTreeMap<String, u64>,
    /// Records that a sink will never have.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::audit) undelivered: Option<Undelivered>,
    /// Records that a sink has, and that are here no more; others have their numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::audit) ahead: Option<Undelivered>,
}

/// Records that a sink will never have, or alone has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::audit) struct Undelivered {
    /// The sink's name.
    pub(in crate::audit) sink: String,
    /// The numbers of the first and the last.
    pub(in crate::audit) records: (u64, u64),
    /// Why.
    pub(in crate::audit) why: String,
}

/// The hash over what was written since the last one.
#[derive(Clone)]
pub(super) struct Chain {
    previous: Hash,
    since: Context,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("previous", &hex(&self.previous))
            .finish_non_exhaustive()
    }
}

impl Chain {
    /// Goes on from a hash.
    pub(super) fn after(previous: Hash) -> Self {
        let mut since = Context::new(&SHA256);
        since.update(&previous);
        Self { previous, since }
    }

    /// The last hash.
    pub(super) fn hash(&self) -> Hash {
        self.previous
    }

    /// Takes in records as they stand in the file.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.since.update(bytes);
    }

    /// Takes in a line of the ledger's own up to its hash, and gives what the hash must be.
    pub(super) fn close(&mut self, before_hash: &[u8]) -> Hash {
        self.since.update(before_hash);
        let mut hash = NOTHING;
        hash.copy_from_slice(self.since.clone().finish().as_ref());
        *self = Self::after(hash);
        hash
    }

    /// Appends a line of the ledger's own with its hash. `sign` makes a seal's signature.
    pub(super) fn write(
        &mut self,
        own: &Own,
        out: &mut Vec<u8>,
        sign: impl FnOnce(&[u8]) -> String,
    ) -> Result<(), serde_json::Error> {
        let text = serde_json::to_vec(own)?;
        let begin = out.len();
        // Without the two braces at its end.
        out.extend_from_slice(text.get(..text.len().saturating_sub(2)).unwrap_or_default());
        if matches!(own, Own::Seal(_)) {
            let signature = sign(&self.to_sign(out.get(begin..).unwrap_or_default()));
            out.extend_from_slice(BEFORE_SIGNATURE);
            out.extend_from_slice(signature.as_bytes());
            out.push(b'"');
        }
        let hash = self.close(out.get(begin..).unwrap_or_default());
        out.extend_from_slice(BEFORE_HASH);
        out.extend_from_slice(hex(&hash).as_bytes());
        out.extend_from_slice(b"\"}}\n");
        Ok(())
    }

    /// What a signature is over: everything up to the last hash, and the seal.
    pub(super) fn to_sign(&self, seal: &[u8]) -> Vec<u8> {
        [SEAL, &self.previous, seal].concat()
    }
}

/// A line of the ledger's own as it was read.
#[derive(Debug)]
pub(super) struct Read<'l> {
    pub(super) own: Own,
    /// Up to its hash.
    pub(super) before_hash: &'l [u8],
    pub(super) hash: Hash,
}

impl Read<'_> {
    /// A seal up to its signature.
    pub(super) fn before_signature(&self) -> &[u8] {
        let at = memchr::memmem::rfind(self.before_hash, BEFORE_SIGNATURE);
        at.and_then(|at| self.before_hash.get(..at))
            .unwrap_or_default()
    }
}

/// Reads a line, without its line break; `None` when it is not the ledger's own.
pub(super) fn read(line: &[u8]) -> Option<Read<'_>> {
    let before_braces = line.strip_suffix(b"\"}}")?;
    let (rest, digits) = before_braces.split_at_checked(before_braces.len().checked_sub(64)?)?;
    let before_hash = rest.strip_suffix(BEFORE_HASH)?;
    let hash = unhex(digits)?;
    let own = serde_json::from_slice(line).ok()?;
    Some(Read {
        own,
        before_hash,
        hash,
    })
}

/// The checksums of whole lines, as a block has them; with their number.
pub(super) fn checksums(lines: &[u8]) -> (u64, String) {
    let mut count = 0;
    let mut text = String::new();
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        text.push_str(&checksum(line));
        count += 1;
    }
    (count, text)
}

/// Of one line with its line break.
pub(super) fn checksum(line: &[u8]) -> String {
    hex(&crc32fast::hash(line).to_be_bytes())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| {
        let digit = DIGITS.get(usize::from(nibble)).copied();
        char::from(digit.unwrap_or(b'0'))
    };
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// 64 lower-case hex digits.
pub(super) fn unhex(digits: &[u8]) -> Option<Hash> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    let mut hash = NOTHING;
    if pairs.len() != hash.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(hash)
}
