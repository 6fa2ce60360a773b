//! Whom a security event is about (RFC 9493, and the complex subjects of Shared Signals 1.0).
//!
//! A subject that our tokens do not name is never guessed: it is [`Whom::Unclear`]. Members of a complex
//! subject that tokens do not name (`device`, `tenant`, `group`) narrow nothing: more ends then,
//! rather than less. Alone they are unclear.

use crate::document::{self, Value};
use crate::revocation::Target;

/// How deep identifiers may be nested: `complex` around `aliases` around one.
const MAX_DEPTH: usize = 3;

/// The most aliases of one subject that are looked at.
const MAX_ALIASES: usize = 32;

/// Whose subjects a stream speaks about, and how it names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Naming {
    /// The `iss` of each issuer whose subjects may be named.
    pub(super) issuers: Vec<String>,
    /// Whether an e-mail address is a `sub`.
    pub(super) email_is_subject: bool,
}

/// Whom an event is about, as far as our tokens name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) user: Option<Target>,
    pub(super) session: Option<Target>,
    pub(super) token: Option<Target>,
}

/// What becomes of a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whom {
    /// Something that tokens name.
    Known(About),
    /// Nothing that tokens name, or nothing readable.
    Unclear,
    /// Somebody else's: the stream may not speak about them.
    Foreign,
}

/// Where in a complex subject an identifier stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Alone, or as `user`.
    User,
    /// As `session`.
    Session,
}

impl Naming {
    /// Reads a subject identifier.
    pub(super) fn whom(&self, subject: &Value) -> Whom {
        self.read(subject, Place::User, MAX_DEPTH)
    }

    fn read(&self, subject: &Value, place: Place, depth: usize) -> Whom {
        let Some(depth) = depth.checked_sub(1) else {
            return Whom::Unclear;
        };
        let format = text(subject, "format").or_else(|| text(subject, "subject_type"));
        // Before RFC 9493 the words were joined by hyphens.
        let format = format.map(|format| format.replace('-', "_"));
        match format.as_deref() {
            Some("iss_sub") => match (text(subject, "iss"), text(subject, "sub")) {
                (Some(issuer), Some(name)) => self.named(issuer, name, place),
                _ => Whom::Unclear,
            },
            Some("opaque") => match (self.only_issuer(), text(subject, "id")) {
                (Some(issuer), Some(name)) => self.named(issuer, name, place),
                _ => Whom::Unclear,
            },
            Some("email") if self.email_is_subject && place == Place::User => {
                match (self.only_issuer(), text(subject, "email")) {
                    (Some(issuer), Some(name)) => self.named(issuer, name, place),
                    _ => Whom::Unclear,
                }
            }
            Some("jwt_id") => match (text(subject, "iss"), text(subject, "jti")) {
                (Some(issuer), Some(token)) if self.speaks_of(issuer) => Whom::Known(About {
                    token: Some(Target::Token {
                        issuer: issuer.to_owned(),
                        token_id: token.to_owned(),
                    }),
                    ..About::default()
                }),
                (Some(_), Some(_)) => Whom::Foreign,
                _ => Whom::Unclear,
            },
            Some("aliases") => self.aliases(subject, place, depth),
            Some("complex") => self.complex(subject, depth),
            // The drafts had no word for it.
            None if ["user", "session"]
                .iter()
                .any(|name| document::member(subject, name).is_some()) =>
            {
                self.complex(subject, depth)
            }
            Some(_) | None => Whom::Unclear,
        }
    }

    fn named(&self, issuer: &str, name: &str, place: Place) -> Whom {
        if !self.speaks_of(issuer) {
            return Whom::Foreign;
        }
        let (issuer, name) = (issuer.to_owned(), name.to_owned());
        Whom::Known(match place {
            Place::User => About {
                user: Some(Target::Subject {
                    issuer,
                    subject: name,
                }),
                ..About::default()
            },
            Place::Session => About {
                session: Some(Target::Session {
                    issuer,
                    session: name,
                }),
                ..About::default()
            },
        })
    }

    /// All of them name the same: one that tokens name is enough.
    fn aliases(&self, subject: &Value, place: Place, depth: usize) -> Whom {
        let identifiers = document::member(subject, "identifiers").and_then(document::items);
        let mut found = Whom::Unclear;
        for identifier in identifiers.unwrap_or_default().iter().take(MAX_ALIASES) {
            match self.read(identifier, place, depth) {
                Whom::Known(about) => return Whom::Known(about),
                Whom::Foreign => found = Whom::Foreign,
                Whom::Unclear => {}
            }
        }
        found
    }

    fn complex(&self, subject: &Value, depth: usize) -> Whom {
        let mut whole = About::default();
        let mut foreign = false;
        for (name, place) in [("user", Place::User), ("session", Place::Session)] {
            let Some(part) = document::member(subject, name) else {
                continue;
            };
            match self.read(part, place, depth) {
                Whom::Known(about) => {
                    whole.user = whole.user.or(about.user);
                    whole.session = whole.session.or(about.session);
                    whole.token = whole.token.or(about.token);
                }
                Whom::Foreign => foreign = true,
                Whom::Unclear => {}
            }
        }
        if foreign {
            Whom::Foreign
        } else if whole == About::default() {
            Whom::Unclear
        } else {
            Whom::Known(whole)
        }
    }

    fn speaks_of(&self, issuer: &str) -> bool {
        self.issuers.iter().any(|known| known == issuer)
    }

    /// The issuer that is meant where none is named.
    fn only_issuer(&self) -> Option<&str> {
        match self.issuers.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }
}

fn text<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    document::member(value, name)
        .and_then(document::text)
        .map(|text| &**text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "https://dev.test";

    fn naming(issuers: &[&str]) -> Naming {
        Naming {
            issuers: issuers.iter().map(|issuer| (*issuer).to_owned()).collect(),
            email_is_subject: false,
        }
    }

    fn whom(naming: &Naming, json: &str) -> Whom {
        naming.whom(&document::from_json(json.as_bytes()).unwrap())
    }

    fn alice() -> About {
        About {
            user: Some(Target::Subject {
                issuer: DEV.to_owned(),
                subject: "alice".to_owned(),
            }),
            ..About::default()
        }
    }

    #[test]
    fn each_format_names_what_tokens_name() {
        let dev = naming(&[DEV]);
        let session = About {
            session: Some(Target::Session {
                issuer: DEV.to_owned(),
                session: "s1".to_owned(),
            }),
            ..About::default()
        };
        let token = About {
            token: Some(Target::Token {
                issuer: DEV.to_owned(),
                token_id: "t1".to_owned(),
            }),
            ..About::default()
        };
        for (json, about) in [
            (
                r#"{"format":"iss_sub","iss":"https://dev.test","sub":"alice"}"#,
                alice(),
            ),
            (
                r#"{"subject_type":"iss-sub","iss":"https://dev.test","sub":"alice"}"#,
                alice(),
            ),
            (r#"{"format":"opaque","id":"alice"}"#, alice()),
            (
                r#"{"format":"jwt_id","iss":"https://dev.test","jti":"t1"}"#,
                token.clone(),
            ),
            (
                r#"{"format":"complex","session":{"format":"opaque","id":"s1"}}"#,
                session.clone(),
            ),
            (
                r#"{"user":{"format":"opaque","id":"alice"},"tenant":{"format":"opaque","id":"t"}}"#,
                alice(),
            ),
            (
                r#"{"format":"complex","user":{"format":"iss_sub","iss":"https://dev.test","sub":"alice"},
                    "session":{"format":"opaque","id":"s1"},"device":{"format":"opaque","id":"d"}}"#,
                About {
                    user: alice().user,
                    ..session
                },
            ),
            (
                r#"{"format":"aliases","identifiers":[{"format":"email","email":"a@x"},
                    {"format":"iss_sub","iss":"https://dev.test","sub":"alice"}]}"#,
                alice(),
            ),
        ] {
            assert_eq!(whom(&dev, json), Whom::Known(about), "{json}");
        }
    }

    #[test]
    fn what_tokens_do_not_name_is_never_guessed() {
        let dev = naming(&[DEV]);
        for json in [
            "{}",
            "[]",
            r#""alice""#,
            r#"{"format":"email","email":"alice@example.test"}"#,
            r#"{"format":"phone_number","phone_number":"+1"}"#,
            r#"{"format":"account","uri":"acct:a@b"}"#,
            r#"{"format":"iss_sub","iss":"https://dev.test"}"#,
            r#"{"format":"iss_sub","iss":"https://dev.test","sub":7}"#,
            r#"{"format":"opaque"}"#,
            r#"{"format":"complex","device":{"format":"opaque","id":"d"}}"#,
            r#"{"format":"complex","tenant":{"format":"opaque","id":"t"}}"#,
            r#"{"format":"complex","user":{"format":"email","email":"a@x"}}"#,
            r#"{"format":"aliases","identifiers":[]}"#,
            r#"{"format":"complex","user":{"format":"complex","user":{"format":"complex","user":{"format":"opaque","id":"a"}}}}"#,
        ] {
            assert_eq!(whom(&dev, json), Whom::Unclear, "{json}");
        }
        let several = naming(&[DEV, "https://other.test"]);
        assert_eq!(
            whom(&several, r#"{"format":"opaque","id":"alice"}"#),
            Whom::Unclear
        );
        let email = Naming {
            email_is_subject: true,
            ..naming(&[DEV])
        };
        assert!(matches!(
            whom(&email, r#"{"format":"email","email":"a@x"}"#),
            Whom::Known(_)
        ));
    }

    #[test]
    fn a_stream_may_not_speak_of_others() {
        let dev = naming(&[DEV]);
        for json in [
            r#"{"format":"iss_sub","iss":"https://other.test","sub":"alice"}"#,
            r#"{"format":"jwt_id","iss":"https://other.test","jti":"t1"}"#,
            r#"{"format":"complex","user":{"format":"iss_sub","iss":"https://other.test","sub":"a"},
                "session":{"format":"opaque","id":"s1"}}"#,
        ] {
            assert_eq!(whom(&dev, json), Whom::Foreign, "{json}");
        }
    }
}
