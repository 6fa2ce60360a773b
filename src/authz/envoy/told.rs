//! What the record tells of the Envoy plugin's document: built, and written but for what may be secret.

use std::sync::LazyLock;

use crate::ascii::{key, text, value};
use crate::authz::cache::projection::Question;
use crate::authz::envoy::document::{self, Want};
use crate::authz::told::{
    MASK, Queries, Script, Telling, Untold, hide_address, hide_query, is_secret,
};
use crate::document::{Value, items, text as as_text};

static ALL: LazyLock<Want> = LazyLock::new(|| Want::by([&[][..]]));

/// Where the headers are.
const HEADERS: [&str; 4] = ["attributes", "request", "http", "headers"];

/// What becomes of a member.
enum Act {
    Keep,
    /// Some of what is in it is hidden.
    Descend,
    Mask,
    /// Each item of an array.
    MaskItems,
    /// All but the query.
    MaskQuery(String),
    Erase,
}

pub(in crate::authz) fn told(
    about: &Question<'_>,
    how: &Telling,
    out: &mut Script,
) -> Result<(), Untold> {
    let excerpt = about.request.excerpt.as_deref();
    if how.bodies && excerpt.is_some_and(|body| body.bytes.len() > how.limit) {
        return Err(Untold::Larger(how.limit));
    }
    let document = document::document(about, &ALL)?;
    object(&document, &mut Vec::new(), how, out);
    Ok(())
}

fn object<'d>(document: &'d Value, path: &mut Vec<&'d str>, how: &Telling, out: &mut Script) {
    let Value::Object(members) = document else {
        return value(&mut out.input, document);
    };
    out.input.push(b'{');
    let mut first = true;
    for (name, member) in members.iter_sorted() {
        path.push(as_text(name).map_or("", AsRef::as_ref));
        let act = act(path, member, how);
        if matches!(act, Act::Erase) {
            out.erase(path);
            path.pop();
            continue;
        }
        if !std::mem::replace(&mut first, false) {
            out.input.push(b',');
        }
        key(&mut out.input, name);
        match act {
            Act::Keep | Act::Erase => value(&mut out.input, member),
            Act::Descend => object(member, path, how, out),
            Act::Mask => {
                out.mask(path);
                text(&mut out.input, MASK);
            }
            Act::MaskItems => {
                out.input.push(b'[');
                for nth in 0..items(member).map_or(0, <[Value]>::len) {
                    if nth > 0 {
                        out.input.push(b',');
                    }
                    out.mask_item(path, nth);
                    text(&mut out.input, MASK);
                }
                out.input.push(b']');
            }
            Act::MaskQuery(shown) => {
                out.mask(path);
                text(&mut out.input, &shown);
            }
        }
        path.pop();
    }
    out.input.push(b'}');
}

fn act(path: &[&str], member: &Value, how: &Telling) -> Act {
    let without_query = |member: &Value| {
        let hidden = as_text(member).and_then(|target| hide_query(target, how.queries));
        hidden.map_or(Act::Keep, Act::MaskQuery)
    };
    match *path {
        ["attributes"]
        | ["attributes", "request"]
        | ["attributes", "request", "http"]
        | ["attributes", "request", "http", "headers"] => Act::Descend,
        ["attributes", "request", "http", "path"] => without_query(member),
        ["attributes", "request", "http", "body" | "rawBody"] | ["parsed_body"] if !how.bodies => {
            if *member == Value::Null {
                Act::Keep
            } else {
                Act::Erase
            }
        }
        ["parsed_query"] => match how.queries {
            Queries::Whole => Act::Keep,
            Queries::Names => Act::Descend,
            Queries::Nothing if member.as_object().is_ok_and(|query| query.is_empty()) => Act::Keep,
            Queries::Nothing => Act::Erase,
        },
        ["parsed_query", _] => Act::MaskItems,
        // Here it has no signature: it says who comes, and opens nothing.
        [ref headers @ .., "authorization"] if *headers == HEADERS => Act::Keep,
        [ref headers @ .., ":path"] if *headers == HEADERS => without_query(member),
        [ref headers @ .., name] if *headers == HEADERS => {
            let value = as_text(member).map_or(&b""[..], |value| value.as_bytes());
            if is_secret(name, value) {
                Act::Mask
            } else {
                let hidden = as_text(member).and_then(|value| hide_address(value, how.queries));
                hidden.map_or(Act::Keep, Act::MaskQuery)
            }
        }
        _ => Act::Keep,
    }
}
