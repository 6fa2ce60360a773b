//! `application/x-www-form-urlencoded`, both ways.

/// A decoded form. Names appear once (RFC 6749 section 3.2: parameters must not be repeated).
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Decodes a body; `None` when it is no form, or when a name comes twice.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let mut form = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            if form.get(&name).is_some() {
                return None;
            }
            form.0.push((name, decode(value)?));
        }
        Some(form)
    }

    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// Adds a parameter.
    pub(super) fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// The encoded body.
    pub(super) fn encode(&self) -> String {
        let pairs: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        pairs.join("&")
    }
}

/// Decodes `%41` and `+`; `None` for a broken escape or what is not UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_survive_the_way_there_and_back() {
        let mut form = Form::default();
        form.push("scope", "orders:read orders:write");
        form.push("a&b", "=%+ü");
        let read = Form::parse(form.encode().as_bytes()).unwrap();
        assert_eq!(read.get("scope"), Some("orders:read orders:write"));
        assert_eq!(read.get("a&b"), Some("=%+ü"));
    }

    #[test]
    fn broken_and_repeated_parameters_are_refused() {
        for body in ["a=%4", "a=%zz", "a=%ff", "a=1&a=2", "a=1&%61=2"] {
            assert!(Form::parse(body.as_bytes()).is_none(), "{body}");
        }
    }
}
