//! How limits are written: rates with their unit, and what is counted together.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The highest rate, in requests a second. A limit beyond it would never bind.
const MAX_PER_SECOND: u32 = 10_000_000;

/// A number of requests per second, minute, hour or day: `50/s`, `100/m`, `1000/h`, `5000/d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[1-9][0-9]*/[smhd]$"))]
pub struct Rate {
    requests: u32,
    unit: char,
}

impl Rate {
    /// So many requests a minute, for defaults.
    pub(super) const fn per_minute(requests: u32) -> Self {
        Self {
            requests,
            unit: 'm',
        }
    }

    /// Requests per [`Rate::period`]; at least 1.
    pub const fn requests(self) -> u32 {
        self.requests
    }

    /// The unit of time behind the slash.
    pub const fn period(self) -> Duration {
        Duration::from_secs(match self.unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            _ => 86_400,
        })
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a rate, such as `50/s`, `100/m`, `1000/h` or `5000/d`");
        let (requests, unit) = text.split_once('/').ok_or_else(wrong)?;
        if requests.is_empty() || !requests.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let unit = match unit {
            "s" => 's',
            "m" => 'm',
            "h" => 'h',
            "d" => 'd',
            _ => return Err(wrong()),
        };
        let rate = Self {
            requests: requests.parse().map_err(|_| wrong())?,
            unit,
        };
        let seconds = rate.period().as_secs();
        let most = u64::from(MAX_PER_SECOND).saturating_mul(seconds);
        if rate.requests == 0 || u64::from(rate.requests) > most {
            return Err(format!(
                "`{text}` is out of range: a rate is at least one request, and at most \
                 {MAX_PER_SECOND} a second"
            ));
        }
        Ok(rate)
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.requests, self.unit)
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

/// What a limit counts together: `address`, `subject`, `client`, `issuer`, `route`, or `claim:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^(address|subject|client|issuer|route|claim:.+)$"))]
pub enum By {
    /// The client's network address, or the network it is in. Counted before authentication.
    Address,
    /// Everybody on one route. Counted before authentication.
    Route,
    /// The verified subject of one issuer; the address of anonymous callers.
    Subject,
    /// The client that acts for the subject; the subject when the token names no client.
    Client,
    /// Everybody whom one issuer vouches for; the address of anonymous callers.
    Issuer,
    /// The value of a claim, by its dotted path; the subject when the claim is absent.
    Claim(String),
}

impl By {
    /// Whether it can be counted before anybody is authenticated.
    pub(super) const fn needs_no_caller(&self) -> bool {
        matches!(self, Self::Address | Self::Route)
    }
}

impl TryFrom<String> for By {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.as_str() {
            "address" => Self::Address,
            "subject" => Self::Subject,
            "client" => Self::Client,
            "issuer" => Self::Issuer,
            "route" => Self::Route,
            other => match other.strip_prefix("claim:") {
                Some(path) if !path.is_empty() && path.split('.').all(|key| !key.is_empty()) => {
                    Self::Claim(path.to_owned())
                }
                _ => {
                    return Err(format!(
                        "`{other}` is not something to count by: expected `address`, `subject`, \
                         `client`, `issuer`, `route` or `claim:NAME`"
                    ));
                }
            },
        })
    }
}

impl From<By> for String {
    fn from(by: By) -> Self {
        match by {
            By::Address => "address".to_owned(),
            By::Route => "route".to_owned(),
            By::Subject => "subject".to_owned(),
            By::Client => "client".to_owned(),
            By::Issuer => "issuer".to_owned(),
            By::Claim(path) => format!("claim:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_unit_and_nothing_else() {
        for (text, requests, seconds) in [
            ("50/s", 50, 1),
            ("100/m", 100, 60),
            ("1000/h", 1000, 3600),
            ("7/d", 7, 86400),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.requests(), requests);
            assert_eq!(rate.period(), Duration::from_secs(seconds));
            assert_eq!(rate.to_string(), text);
        }
        for bad in [
            "",
            "50",
            "50/",
            "/s",
            "0/s",
            "-1/s",
            "+1/s",
            "1.5/s",
            "50/S",
            "50/sec",
            "50 /s",
            "99999999999/s",
            "10000001/s",
            "1/2/s",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_to_count_by_survives_the_effective_document() {
        for text in [
            "address",
            "subject",
            "client",
            "issuer",
            "route",
            "claim:org.id",
        ] {
            let by = By::try_from(text.to_owned()).unwrap();
            assert_eq!(String::from(by), text);
        }
        for bad in ["", "claim:", "claim:a..b", "user", "Address"] {
            assert!(By::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
