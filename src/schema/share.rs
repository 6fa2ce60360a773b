//! A share of many, in percent.

use std::fmt;

/// A million of these are all.
const ALL: u32 = 1_000_000;

/// A share in percent, `0%` to `100%`, to a ten-thousandth: `0.1%`, `5%`, `100%`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Everything.
    pub const ALL: Self = Self(ALL);

    /// Whole percents, for defaults; more than 100 are all.
    pub const fn percent(percent: u32) -> Self {
        let parts = percent.saturating_mul(ALL / 100);
        Self(if parts > ALL { ALL } else { parts })
    }

    /// So many of a million, for defaults; more are all.
    pub const fn of_millionths(parts: u32) -> Self {
        Self(if parts > ALL { ALL } else { parts })
    }

    /// So many of a million.
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// Whether something with this number, evenly spread over all there are, is among the share. What
    /// is in a share is in every larger one.
    pub fn takes(self, number: u64) -> bool {
        // The high half of a product: even, and without a division.
        let place = (u128::from(number) * u128::from(ALL)) >> 64;
        place < u128::from(self.0)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = text.strip_suffix('%')?;
        let (whole, parts) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(parts) || parts.len() > 4 {
            return None;
        }
        let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 100)?;
        let parts: u32 = format!("{parts:0<4}").parse().ok()?;
        let share = whole * (ALL / 100) + parts;
        (share <= ALL).then_some(Self(share))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, parts) = (self.0 / (ALL / 100), self.0 % (ALL / 100));
        if parts == 0 {
            return write!(f, "{whole}%");
        }
        let parts = format!("{parts:04}");
        write!(f, "{whole}.{}%", parts.trim_end_matches('0'))
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_written_in_percent() {
        for (text, parts) in [
            ("0%", 0),
            ("0.0001%", 1),
            ("0.1%", 1_000),
            ("1%", 10_000),
            ("12.5%", 125_000),
            ("100%", 1_000_000),
        ] {
            let share = Share::parse(text).unwrap();
            assert_eq!(
                (share.millionths(), share.to_string()),
                (parts, text.to_owned())
            );
        }
        for text in [
            "",
            "%",
            "1",
            "100.0001%",
            "101%",
            "-1%",
            "1.%",
            ".5%",
            "1.00001%",
            "1 %",
            "1e1%",
        ] {
            assert_eq!(Share::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_share_takes_what_smaller_ones_take_and_none_and_all_are_exact() {
        let step = u64::MAX / 10_000;
        for share in [0, 1, 10_000, 500_000, 999_999, 1_000_000].map(Share) {
            let taken = (0..=10_000).filter(|n| share.takes(n * step)).count();
            let expected = u64::from(share.0) * 10_000 / u64::from(ALL);
            assert!(
                u64::try_from(taken).unwrap().abs_diff(expected) <= 1,
                "{share}"
            );
        }
        for number in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(Share::ALL.takes(number) && !Share::NONE.takes(number));
        }
    }
}
