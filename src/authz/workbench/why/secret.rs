//! What of a reason is not told: values that stand beside a credential, or beside what was masked.
//!
//! A condition that compares a header with a key of the policy's data has the right key among its
//! values. Nobody needs it to see what failed, so such conditions keep their text and lose their
//! values. What looks like a credential is told by its name, in the condition itself, in what gave a
//! variable its value, or in the rule that was asked; it errs on the side of hiding.

use super::{Because, Condition, Known, Way};

/// What stands in the place of a value.
const MASK: &str = "***";

/// Parts of names of credentials.
const PARTS: &[&str] = &[
    "secret",
    "token",
    "passw",
    "passphrase",
    "credential",
    "cookie",
    "signature",
    "hmac",
    "bearer",
];
/// And whole words; those that end with `key` or `keys` count, too.
const WORDS: &[&str] = &["pwd", "pin", "otp", "jwt", "psk"];
/// How values of credentials begin, whatever their names.
const BEGINNINGS: &[&str] = &["\"Bearer ", "\"Basic ", "\"eyJ", "\"-----BEGIN"];
/// Words of the language, which are no variables.
const RESERVED: &[&str] = &["data", "input", "some", "every", "in", "not"];

/// Whether an expression names a credential. Texts that it only compares with, or writes, do not count.
pub(super) fn named(text: &str) -> bool {
    let names = without_texts(text).replace("object.keys", "");
    let names = names.to_lowercase();
    PARTS.iter().any(|part| names.contains(part))
        || names
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| word.ends_with("key") || word.ends_with("keys") || WORDS.contains(&word))
}

/// Without texts that are values: those behind `[` and `,` may name a member.
fn without_texts(text: &str) -> String {
    let mut names = String::with_capacity(text.len());
    let mut before = '=';
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter == '"' {
            let named = matches!(before, '[' | ',' | '{');
            while let Some(inner) = letters.next() {
                match inner {
                    '"' => break,
                    '\\' => {
                        let _ = letters.next();
                    }
                    other if named => names.push(other),
                    _ => {}
                }
            }
            names.push('"');
        } else {
            names.push(letter);
        }
        if !letter.is_whitespace() {
            before = letter;
        }
    }
    names
}

/// Whether one of these values is masked, or is called or looks like a credential.
pub(super) fn among(values: &[Known]) -> bool {
    values.iter().any(|known| {
        let shaped = BEGINNINGS.iter().any(|it| known.value.contains(it));
        known.masked || shaped || named(&known.name)
    })
}

/// Variables to which these statements give what looks like a credential, or what comes from one.
pub(super) fn variables<'t>(statements: impl IntoIterator<Item = &'t str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for statement in statements {
        let given = match statement.split_once(":=") {
            Some((names, _)) => names,
            None => match statement.split_once(" in ") {
                Some((names, _)) if names.trim_start().starts_with("some") => names,
                Some(_) | None => continue,
            },
        };
        if named(statement)
            || found
                .iter()
                .any(|name| super::search::mentions(statement, name))
        {
            let words = given.split(|c: char| !c.is_alphanumeric() && c != '_');
            let words = words.filter(|word| !word.is_empty() && !RESERVED.contains(word));
            found.extend(words.map(str::to_owned));
        }
    }
    found
}

/// Takes the values out of what is secret; with `found` all that is not in the document.
pub(super) fn conceal(ways: &mut [Way], found: bool) {
    ways.iter_mut().for_each(|it| way(it, false, found));
}

fn way(way: &mut Way, within: bool, found: bool) {
    condition(&mut way.failed, within, found);
    let also = way.also.iter_mut();
    also.for_each(|also| condition(also, within, found));
}

fn condition(one: &mut Condition, within: bool, found: bool) {
    let secret = one.secret || within;
    for known in &mut one.values {
        if secret || (found && !known.of_input) {
            mask(&mut known.value);
        }
    }
    if (secret || found)
        && let Some(error) = &mut one.error
    {
        "it cannot be evaluated".clone_into(error);
    }
    let inner = one.within.iter_mut();
    inner.for_each(|inner| condition(inner, secret, found));
    let asked = one.because.iter_mut();
    asked.for_each(|asked| because(asked, secret, found));
}

fn because(one: &mut Because, asked_by_secret: bool, found: bool) {
    let call = one.rule.find('(');
    if (asked_by_secret || found)
        && let Some(at) = call
    {
        one.rule.truncate(at);
        one.rule.push_str("(***)");
    }
    if asked_by_secret || one.secret || found {
        mask(&mut one.value);
    }
    // What a function was given it has in its conditions under other names.
    let secret = one.secret || (asked_by_secret && call.is_some());
    let held = one.held.iter_mut();
    held.for_each(|held| condition(held, secret, found));
    one.ways.iter_mut().for_each(|it| way(it, secret, found));
}

/// Whether something holds, or is there at all, is no secret.
fn mask(value: &mut String) {
    let plain = matches!(value.as_str(), "true" | "false" | "null");
    if !plain && !value.starts_with("undefined") {
        MASK.clone_into(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_known_by_their_names() {
        for secret in [
            "data.keys[input.id]",
            "input.request.headers[\"x-partner-key\"]",
            "object.get(input.request.headers, \"x-api-key\", \"\")",
            "input.token",
            "data.partnerKey",
            "lower(data.passwords.a)",
        ] {
            assert!(named(secret), "{secret}");
        }
        for open in [
            "data.owners[input.request.path]",
            "input.identity.subject",
            "role == \"key-user\"",
            "sprintf(\"no token of %v\", [input.id])",
            "object.keys(data.owners)",
            "data.keyboards",
            "needed_scope in input.identity.scopes",
        ] {
            assert!(!named(open), "{open}");
        }
    }

    #[test]
    fn variables_carry_what_they_were_given() {
        let given = variables([
            "right := data.keys[input.id]",
            "other := concat(\"\", [right])",
            "name := data.owners[input.id]",
            "some one in data.secrets",
            "msg := \"bad token\"",
        ]);
        assert_eq!(given, ["right", "other", "one"]);
    }
}
