//! Path templates: `/orders/{id}`, `/files/{*rest}`.

use std::sync::Arc;

use crate::request::{CanonicalPath, PathRules};

/// The longest template, in bytes.
const MAX_LENGTH: usize = 2_048;

/// The most `{…}` in one template.
const MAX_PARAMS: usize = 32;

/// A checked path template.
///
/// `{name}` stands for one segment that is not empty. `{*rest}` stands at the end for the whole
/// tail, which may be empty: `/files/{*rest}` takes `/files/`, but not `/files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(String),
    Param(Arc<str>),
    Rest(Arc<str>),
}

impl Template {
    /// Checks a template.
    ///
    /// # Errors
    /// What is wrong, and how to mend it.
    pub(super) fn parse(text: &str, rules: PathRules) -> Result<Self, (String, String)> {
        let fail = |message: String, help: &str| Err((message, help.to_owned()));
        let Some(tail) = text.strip_prefix('/') else {
            return fail(
                format!("the path `{text}` does not start with `/`"),
                "write it as clients ask for it: `/orders/{id}`",
            );
        };
        if text.len() > MAX_LENGTH {
            return fail(
                format!("the path is longer than {MAX_LENGTH} bytes"),
                "shorten it",
            );
        }
        let mut segments = Vec::new();
        let mut names: Vec<Arc<str>> = Vec::new();
        let pieces: Vec<&str> = if tail.is_empty() {
            Vec::new()
        } else {
            tail.split('/').collect()
        };
        let count = pieces.len();
        for (index, piece) in pieces.into_iter().enumerate() {
            let inner = piece
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'));
            let Some(inner) = inner else {
                if piece.contains(['{', '}']) {
                    return fail(
                        format!("`{piece}` mixes text and a parameter in one segment"),
                        "a parameter is a whole segment: `/files/{name}`",
                    );
                }
                if piece.contains('*') {
                    // A legal character of paths, but hardly ever what was meant.
                    return fail(
                        format!("`{piece}` is no pattern"),
                        "write `{name}` for one segment and `{*rest}` for the tail",
                    );
                }
                segments.push(Segment::Literal(piece.to_owned()));
                continue;
            };
            let name = inner.strip_prefix('*').unwrap_or(inner);
            if name.is_empty()
                || name.starts_with(|c: char| c.is_ascii_digit())
                || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            {
                return fail(
                    format!("`{{{inner}}}` is not a parameter"),
                    "a parameter's name is made of letters, digits and `_`: `{order_id}`",
                );
            }
            if names.iter().any(|known| **known == *name) {
                return fail(
                    format!("the parameter `{name}` is there twice"),
                    "policies see parameters by name: give each its own",
                );
            }
            let name: Arc<str> = name.into();
            names.push(Arc::clone(&name));
            if !inner.starts_with('*') {
                segments.push(Segment::Param(name));
            } else if index + 1 == count {
                segments.push(Segment::Rest(name));
            } else {
                return fail(
                    format!("`{{{inner}}}` is not the last segment"),
                    "`{*name}` takes the whole tail: put it at the end",
                );
            }
        }
        if names.len() > MAX_PARAMS {
            return fail(
                format!("the path has more than {MAX_PARAMS} parameters"),
                "use fewer",
            );
        }
        let template = Self { segments };
        template.check_canonical(rules)?;
        Ok(template)
    }

    /// A template in a form that no canonical path has would never match.
    fn check_canonical(&self, rules: PathRules) -> Result<(), (String, String)> {
        let sample = self.pattern(|_, _| "p".to_owned());
        let path = CanonicalPath::parse(&sample).map_err(|reason| {
            (
                format!("the path can match no request: {reason}"),
                "percent-encode it".to_owned(),
            )
        })?;
        rules.check(path.ambiguities()).map_err(|form| {
            let help =
                "such paths are refused; allow them under `paths`, or write the path without";
            (
                format!("the path can match no request: {form}"),
                help.to_owned(),
            )
        })?;
        if path.as_str() != sample {
            let shown = CanonicalPath::parse(&self.pattern(|_, _| "{}".replace("{}", "p")))
                .map(|path| path.as_str().to_owned())
                .unwrap_or_default();
            return Err((
                "the path is not in canonical form, so it can match no request".to_owned(),
                format!("its canonical form (parameters shown as `p`) is `{shown}`"),
            ));
        }
        Ok(())
    }

    /// The template with each parameter written by `param` (its position, whether it is the tail).
    pub(super) fn pattern(&self, param: impl Fn(usize, bool) -> String) -> String {
        let mut text = String::new();
        let mut position = 0;
        for segment in &self.segments {
            text.push('/');
            match segment {
                Segment::Literal(literal) => text.push_str(literal),
                Segment::Param(_) => {
                    text.push_str(&param(position, false));
                    position += 1;
                }
                Segment::Rest(_) => text.push_str(&param(position, true)),
            }
        }
        if text.is_empty() {
            "/".to_owned()
        } else {
            text
        }
    }

    /// The template as the index takes it. Parameters are named by position, so that two routes may
    /// call the same segment differently.
    pub(super) fn key(&self) -> String {
        self.pattern(|position, rest| {
            if rest {
                format!("{{*p{position}}}")
            } else {
                format!("{{p{position}}}")
            }
        })
    }

    /// For a template with a tail, the path with the empty tail.
    pub(super) fn without_tail(&self) -> Option<String> {
        matches!(self.segments.last(), Some(Segment::Rest(_))).then(|| {
            self.pattern(|position, rest| {
                if rest {
                    String::new()
                } else {
                    format!("{{p{position}}}")
                }
            })
        })
    }

    /// The names of the parameters, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Param(name) | Segment::Rest(name) => Some(name),
        })
    }

    #[cfg(test)]
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Template, (String, String)> {
        Template::parse(text, PathRules::default())
    }

    #[test]
    fn templates_that_could_never_match_or_say_two_things_are_refused() {
        for (text, needle) in [
            ("", "does not start"),
            ("orders", "does not start"),
            ("/a//b", "empty segment"),
            ("/a/../b", "dot segment"),
            ("/%61", "canonical form"),
            ("/a%2fb", "encoded slash"),
            ("/a;b", "path parameter"),
            ("/a b", "forbidden byte"),
            ("/{id}.json", "mixes"),
            ("/a{id}", "mixes"),
            ("/{}", "not a parameter"),
            ("/{*}", "not a parameter"),
            ("/{a-b}", "not a parameter"),
            ("/{1}", "not a parameter"),
            ("/{a}/{a}", "twice"),
            ("/{*a}/b", "not the last"),
            ("/*", "no pattern"),
            ("/a?b=c", "forbidden byte"),
        ] {
            let (message, help) = parse(text).unwrap_err();
            assert!(message.contains(needle), "{text}: {message}");
            assert!(!help.is_empty());
        }
        assert!(parse(&format!("/{}", "a".repeat(MAX_LENGTH))).is_err());
        let params = |n: usize| (0..n).map(|i| format!("/{{p{i}}}")).collect::<String>();
        assert!(parse(&params(MAX_PARAMS)).is_ok());
        assert!(parse(&params(MAX_PARAMS + 1)).is_err());
    }

    #[test]
    fn a_form_that_the_route_allows_may_stand_in_its_template() {
        let rules = PathRules {
            allow_parameters: true,
            ..PathRules::default()
        };
        assert!(Template::parse("/a;v=1/b", rules).is_ok());
    }

    #[test]
    fn keys_name_parameters_by_position() {
        let template = parse("/a/{x}/b/{*y}").unwrap();
        assert_eq!(template.key(), "/a/{p0}/b/{*p1}");
        assert_eq!(template.without_tail().unwrap(), "/a/{p0}/b/");
        assert_eq!(
            template.names().map(|n| &**n).collect::<Vec<_>>(),
            ["x", "y"]
        );
        assert_eq!(parse("/").unwrap().key(), "/");
        assert_eq!(parse("/{*rest}").unwrap().without_tail().unwrap(), "/");
        assert_eq!(parse("/a/").unwrap().key(), "/a/");
    }
}
