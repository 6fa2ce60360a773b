//! The host of a request: RFC 3986 section 3.2.2, without user information.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::Malformed;

/// A host name or address literal in lower case, with the port that was named beside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// The name and, where there is one, a colon and the port in its shortest form.
    text: Arc<str>,
    /// How much of `text` is the name.
    name: usize,
    port: Option<u16>,
}

impl Host {
    /// Reads `name`, `name:port` or `[v6]:port`.
    ///
    /// # Errors
    /// [`Malformed::Host`] for anything else: user information, empty names, odd bytes, bad ports.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (mut name, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(Malformed::Host)?;
            let address: Ipv6Addr = address.parse().map_err(|_| Malformed::Host)?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or(Malformed::Host)?),
            };
            (format!("[{address}]"), port)
        } else {
            let (name, port) = match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            };
            let name = name.strip_suffix('.').unwrap_or(name);
            // Labels of letters, digits, `-` and `_`; none is empty.
            let mut dot = true;
            let legal = name.bytes().all(|b| {
                let after_dot = std::mem::replace(&mut dot, b == b'.');
                b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_') || (b == b'.' && !after_dot)
            });
            if !legal || dot || name.len() > 253 {
                return Err(Malformed::Host);
            }
            let mut lower = String::with_capacity(text.len());
            lower.push_str(name);
            lower.make_ascii_lowercase();
            (lower, port)
        };
        let port = match port {
            None => None,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| Malformed::Host)?)
            }
            Some(_) => return Err(Malformed::Host),
        };
        let length = name.len();
        if let Some(port) = port {
            name.push(':');
            name.push_str(itoa::Buffer::new().format(port));
        }
        Ok(Self {
            text: name.into(),
            name: length,
            port,
        })
    }

    /// As it goes into a `Host` header: the name, and the port that the client wrote.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name or address, in lower case, without port; IPv6 in brackets.
    pub fn name(&self) -> &str {
        self.text.get(..self.name).unwrap_or_default()
    }

    /// The port that the client wrote, if any.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_one_way() {
        let ok = |text: &str, shown: &str| {
            let host = Host::parse(text).unwrap();
            assert_eq!(host.to_string(), shown, "{text}");
            // Else a connection's known host could be taken for another one's text.
            assert_eq!(Host::parse(host.as_str()), Ok(host), "{text}");
        };
        ok("API.Example.com", "api.example.com");
        ok("example.com.", "example.com");
        ok("example.com:8443", "example.com:8443");
        ok("[::1]:80", "[::1]:80");
        ok("[0:0::1]", "[::1]");
        ok("127.0.0.1", "127.0.0.1");
        for bad in [
            "",
            ":80",
            "a b",
            "a@b",
            "a/b",
            "a,b",
            "a:80:90",
            "a:",
            "a:+80",
            "a:65536",
            "[::1",
            "[::1]x",
            "..",
            "a..b",
            ".a",
            "a\\b",
            "a%41",
            "é",
            "[fe80::1%lo]",
            "::1",
            "a#b",
            "a?b",
        ] {
            assert_eq!(Host::parse(bad), Err(Malformed::Host), "{bad:?}");
        }
    }
}
