//! Values taken out of JSON and put into it, in the text itself: a record is changed without being
//! read. The text is canonical, as records hold it: no blanks.

use std::ops::Range;

use super::super::read::scan::{Members, value_end};
use crate::ascii;

/// One step of a JSON Pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// What a member's name may be, as it is written between its quotation marks. OPA takes what stands
    /// in the pointer as it is; with `~1`, `~0` and percent signs it may also be meant by their rules.
    names: Vec<Vec<u8>>,
    /// Its place, where it leads into an array.
    index: Option<usize>,
    /// The name of a member that is made.
    made: Vec<u8>,
}

impl Step {
    /// Whether it may lead to the member of this name.
    pub(super) fn names(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name.as_bytes())
    }

    /// How much memory it holds, in bytes.
    pub(super) fn weight(&self) -> usize {
        let names: usize = self.names.iter().map(|it| it.len() + 24).sum();
        size_of::<Self>() + names + self.made.len()
    }

    pub(super) fn new(part: &str) -> Self {
        let mut read = vec![part.to_owned()];
        if part.contains('~') {
            read.push(part.replace("~1", "/").replace("~0", "~"));
        }
        if let Some(decoded) = percent_decoded(part) {
            read.push(decoded);
        }
        let written = |name: &String| {
            let mut out = Vec::new();
            ascii::inner(&mut out, name, false);
            out
        };
        let names: Vec<Vec<u8>> = read.iter().map(written).collect();
        Self {
            made: names.get(1).or(names.first()).cloned().unwrap_or_default(),
            names,
            index: part.parse().ok().filter(|_| !part.starts_with('+')),
        }
    }
}

fn percent_decoded(part: &str) -> Option<String> {
    let mut rest = part;
    let mut out = Vec::new();
    while let Some((before, after)) = rest.split_once('%') {
        out.extend_from_slice(before.as_bytes());
        out.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = after.get(2..)?;
    }
    if out.is_empty() {
        return None;
    }
    out.extend_from_slice(rest.as_bytes());
    String::from_utf8(out).ok()
}

/// Where something stands.
struct Found {
    /// With its name.
    whole: Range<usize>,
    value: Range<usize>,
}

/// Where a part of a text stands in it.
fn range(text: &[u8], part: &[u8]) -> Range<usize> {
    let from = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    from..from + part.len()
}

/// What a step leads to from the container at this place.
fn child(text: &[u8], at: &Range<usize>, step: &Step) -> Option<Found> {
    let container = text.get(at.clone())?;
    if container.starts_with(b"[") {
        return item(text, at, step.index?);
    }
    // The first reading of a name that there is.
    step.names.iter().find_map(|wanted| {
        let mut members = Members::of(container).map_while(|member| member);
        let (name, value) = members.find(|(name, _)| name == wanted)?;
        let value = range(text, value);
        let whole = range(text, name).start - 1..value.end;
        Some(Found { whole, value })
    })
}

fn item(text: &[u8], at: &Range<usize>, index: usize) -> Option<Found> {
    let mut from = at.start + 1;
    let mut nth = 0;
    loop {
        let rest = text.get(from..at.end)?;
        if rest.starts_with(b"]") {
            return None;
        }
        let value = from..from + value_end(rest)?;
        if nth == index {
            let whole = value.clone();
            return Some(Found { whole, value });
        }
        from = value.end + 1;
        nth += 1;
    }
}

/// The value that these names lead to, or where the way enters an array, that.
pub(super) fn at_names<'t>(text: &'t [u8], names: &[Vec<u8>]) -> Option<&'t [u8]> {
    let mut at = text;
    for wanted in names {
        if at.starts_with(b"[") {
            break;
        }
        let mut members = Members::of(at).map_while(|member| member);
        at = members.find(|(name, _)| name == wanted)?.1;
    }
    Some(at)
}

/// Takes out what the pointer leads to; `false` when there is no such thing. In an array `null` stays in
/// its place, so that every other pointer still leads to what it was meant for.
pub(super) fn remove(text: &mut Vec<u8>, pointer: &[Step]) -> bool {
    let mut at = 0..text.len();
    let mut whole = None;
    let mut item = false;
    for step in pointer {
        item = text.get(at.start) == Some(&b'[');
        let Some(found) = child(text, &at, step) else {
            return false;
        };
        at = found.value;
        whole = Some(found.whole);
    }
    let Some(mut whole) = whole else {
        return false;
    };
    if item {
        text.splice(whole, *b"null");
        return true;
    }
    // With one of the commas beside it.
    if text.get(whole.end) == Some(&b',') {
        whole.end += 1;
    } else if whole.start.checked_sub(1).and_then(|at| text.get(at)) == Some(&b',') {
        whole.start -= 1;
    }
    text.drain(whole);
    true
}

/// Puts a value where the pointer leads; members that are missing on the way are made, in objects.
/// `false` when it leads nowhere.
pub(super) fn upsert(text: &mut Vec<u8>, pointer: &[Step], value: &[u8]) -> bool {
    let mut at = 0..text.len();
    for (nth, step) in pointer.iter().enumerate() {
        match child(text, &at, step) {
            Some(found) => at = found.value,
            None if text.get(at.start) == Some(&b'{') => {
                let rest = pointer.get(nth + 1..).unwrap_or_default();
                let empty = at.end - at.start == 2;
                let mut member = Vec::new();
                if !empty {
                    member.push(b',');
                }
                named(&mut member, &step.made);
                for step in rest {
                    member.push(b'{');
                    named(&mut member, &step.made);
                }
                member.extend_from_slice(value);
                member.extend(rest.iter().map(|_| b'}'));
                let end = at.end - 1;
                text.splice(end..end, member);
                return true;
            }
            None => return false,
        }
    }
    text.splice(at, value.iter().copied());
    true
}

fn named(out: &mut Vec<u8>, name: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name);
    out.extend_from_slice(b"\":");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"a":{"b":[1,{"c":2},[3,4]],"d":"x,\"}","e~f/g":5,"h i":6},"j":{}}"#;

    fn steps(pointer: &str) -> Vec<Step> {
        pointer.split('/').skip(1).map(Step::new).collect()
    }

    fn removed(pointer: &str) -> Option<String> {
        let mut text = TEXT.as_bytes().to_vec();
        remove(&mut text, &steps(pointer)).then(|| String::from_utf8(text).unwrap())
    }

    fn put(pointer: &str) -> Option<String> {
        let mut text = TEXT.as_bytes().to_vec();
        upsert(&mut text, &steps(pointer), b"\"*\"").then(|| String::from_utf8(text).unwrap())
    }

    #[test]
    fn what_a_pointer_leads_to_is_taken_out() {
        for (pointer, cut) in [
            ("/a/b/1/c", r#""c":2"#),
            ("/a/d", r#""d":"x,\"}","#),
            ("/a/e~0f~1g", r#""e~f/g":5,"#),
            ("/a/h%20i", r#","h i":6"#),
            ("/a/h i", r#","h i":6"#),
            ("/j", r#","j":{}"#),
        ] {
            assert_eq!(
                removed(pointer).unwrap(),
                TEXT.replacen(cut, "", 1),
                "{pointer}"
            );
        }
        for (pointer, item, left) in [
            ("/a/b/0", "[1,", "[null,"),
            ("/a/b/1", r#"{"c":2}"#, "null"),
            ("/a/b/2", "[3,4]", "null"),
            ("/a/b/2/0", "[3,", "[null,"),
            ("/a/b/2/1", ",4]", ",null]"),
        ] {
            let left = TEXT.replacen(item, left, 1);
            assert_eq!(removed(pointer).unwrap(), left, "{pointer}");
        }
        for nowhere in [
            "/x",
            "/a/x",
            "/a/b/3",
            "/a/b/-1",
            "/a/b/x",
            "/a/d/0",
            "/j/k",
            "/a/b/1/c/d",
        ] {
            assert_eq!(removed(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_value_is_put_where_a_pointer_leads_and_the_way_is_made() {
        for (pointer, from, to) in [
            ("/a/b/0", "[1,", r#"["*","#),
            ("/a/b/1/c", r#""c":2"#, r#""c":"*""#),
            ("/a/b/1/n", r#""c":2"#, r#""c":2,"n":"*""#),
            ("/a/b", r#"[1,{"c":2},[3,4]]"#, r#""*""#),
            ("/j/k/l", r#""j":{}"#, r#""j":{"k":{"l":"*"}}"#),
            ("/j", r#""j":{}"#, r#""j":"*""#),
            ("/a/e~0f~1g", ":5", r#":"*""#),
            ("/j/m~1n", r#""j":{}"#, r#""j":{"m/n":"*"}"#),
        ] {
            assert_eq!(
                put(pointer).unwrap(),
                TEXT.replacen(from, to, 1),
                "{pointer}"
            );
        }
        for nowhere in ["/a/d/x", "/a/b/3", "/a/b/7/x", "/a/b/x"] {
            assert_eq!(put(nowhere), None, "{nowhere}");
        }
    }
}
