//! `crypto.*`: hashes, and what is made of them.

use aws_lc_rs::{constant_time, digest, hmac};
use regorus::Value;

use super::args::{made, short, text};
use super::{Answer, MAX_TEXT};

fn hex(bytes: &[u8]) -> Answer {
    made(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn hash(args: &[Value], algorithm: &'static digest::Algorithm) -> Answer {
    let text = text(args, 0)?;
    short(text.len(), MAX_TEXT)?;
    hex(digest::digest(algorithm, text.as_bytes()).as_ref())
}

pub(super) fn md5_hash(args: &[Value]) -> Answer {
    let text = text(args, 0)?;
    short(text.len(), MAX_TEXT)?;
    hex(md5::compute(text).as_ref())
}

pub(super) fn authenticate(args: &[Value], algorithm: hmac::Algorithm) -> Answer {
    let (message, key) = (text(args, 0)?, text(args, 1)?);
    short(message.len().saturating_add(key.len()), MAX_TEXT)?;
    let key = hmac::Key::new(algorithm, key.as_bytes());
    hex(hmac::sign(&key, message.as_bytes()).as_ref())
}

/// RFC 2104 over MD5, which the library has no more.
pub(super) fn authenticate_md5(args: &[Value]) -> Answer {
    let (message, key) = (text(args, 0)?, text(args, 1)?);
    short(message.len().saturating_add(key.len()), MAX_TEXT)?;
    let mut block = [0u8; 64];
    let key = match key.len() > block.len() {
        true => md5::compute(key).to_vec(),
        false => key.as_bytes().to_vec(),
    };
    for (byte, given) in block.iter_mut().zip(key) {
        *byte = given;
    }
    let padded = |with: u8| block.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
    let inner = md5::compute([padded(0x36), message.as_bytes().to_vec()].concat());
    hex(md5::compute([padded(0x5c), inner.to_vec()].concat()).as_ref())
}

pub(super) fn equal(args: &[Value]) -> Answer {
    let (one, other) = (text(args, 0)?, text(args, 1)?);
    let equal = constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok();
    Ok(Value::from(equal))
}
