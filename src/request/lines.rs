//! Header fields that many requests have in common, written once.

use http::header::{HeaderName, HeaderValue};

/// Fields that are sent again and again, with the lines that HTTP/1 writes for them.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    fields: Vec<(HeaderName, HeaderValue)>,
    text: Vec<u8>,
}

impl Lines {
    /// The fields, in their order.
    pub fn fields(&self) -> &[(HeaderName, HeaderValue)] {
        &self.fields
    }

    /// `name: value` and CR LF for each of them.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Lines {
    fn from_iter<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: T) -> Self {
        let mut fields: Vec<_> = fields.into_iter().collect();
        // A connection keeps them for as long as it is open.
        fields.shrink_to_fit();
        let mut text = Vec::new();
        for (name, value) in &fields {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                text.extend_from_slice(part);
            }
        }
        text.shrink_to_fit();
        Self { fields, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_fields_as_http1_writes_them() {
        let field = |name, value| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        let lines: Lines = [field("x-a", "1"), field("x-b", "a: b")]
            .into_iter()
            .collect();
        assert_eq!(lines.text(), b"x-a: 1\r\nx-b: a: b\r\n");
        assert_eq!(lines.fields().len(), 2);
        assert_eq!(Lines::default().text(), b"");
    }
}
