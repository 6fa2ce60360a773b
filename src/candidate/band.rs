//! When a candidate that decides has to stop: what it may differ from its policy, and over how long.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;

use crate::schema::Share;

/// Most parts that a window is kept in. Older ones are put together, so that a candidate with few
/// requests is judged by all of them.
const MAX_PARTS: usize = 1_024;
/// So few differences are chance, unless none at all is allowed.
const CHANCE: u64 = 2;

/// How far a candidate may differ from its policy on the requests that it decides. Shares are in
/// millionths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) denials: u32,
    pub(super) permits: u32,
    pub(super) errors: u32,
    /// Seconds.
    pub(super) over: u64,
    /// Fewest requests to judge by.
    pub(super) least: u64,
}

/// Requests that a candidate decided, against what its policy says of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Judged {
    /// All of them.
    pub decided: u64,
    /// Those of which its policy was asked, too.
    pub compared: u64,
    /// Denied, where the policy allows.
    pub denials: u64,
    /// Allowed, where the policy denies.
    pub permits: u64,
    /// Failed, where the policy answers.
    pub errors: u64,
}

impl Judged {
    pub(super) fn add(&mut self, more: Self) {
        self.decided += more.decided;
        self.compared += more.compared;
        self.denials += more.denials;
        self.permits += more.permits;
        self.errors += more.errors;
    }

    pub(super) fn less(self, other: Self) -> Self {
        Self {
            decided: self.decided.saturating_sub(other.decided),
            compared: self.compared.saturating_sub(other.compared),
            denials: self.denials.saturating_sub(other.denials),
            permits: self.permits.saturating_sub(other.permits),
            errors: self.errors.saturating_sub(other.errors),
        }
    }
}

/// Which edge of the band was left, and how far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    /// `denials`, `permits` or `errors`.
    pub(super) edge: &'static str,
    count: u64,
    compared: u64,
    most: u32,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (did, where_) = match self.edge {
            "denials" => ("denied", "allows"),
            "permits" => ("allowed", "denies"),
            _ => ("failed at", "answers"),
        };
        // In tenths of a percent: what people read.
        let tenths = self.count.saturating_mul(1_000) / self.compared.max(1);
        write!(
            f,
            "it {did} {} of {} requests that its policy {where_} ({}.{}%, at most {})",
            self.count,
            self.compared,
            tenths / 10,
            tenths % 10,
            Share::of_millionths(self.most),
        )
    }
}

/// The requests by which a candidate is judged now: those of the last seconds, or the last so many.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// The second in which each part began, oldest first.
    parts: VecDeque<(u64, Judged)>,
    sum: Judged,
}

impl Window {
    /// Takes what was judged since the last time; `now` is in seconds, from anywhere.
    pub(super) fn take(&mut self, now: u64, more: Judged, band: &Band) {
        if more.decided > 0 {
            self.sum.add(more);
            match self.parts.back_mut() {
                Some((second, part)) if *second == now => part.add(more),
                Some(_) | None => self.parts.push_back((now, more)),
            }
        }
        while let Some((second, oldest)) = self.parts.front() {
            let rest = self.sum.less(*oldest);
            if second.saturating_add(band.over) > now || rest.compared < band.least {
                break;
            }
            self.sum = rest;
            self.parts.pop_front();
        }
        if self.parts.len() > MAX_PARTS
            && let Some((_, oldest)) = self.parts.pop_front()
            && let Some((_, next)) = self.parts.front_mut()
        {
            next.add(oldest);
        }
    }

    /// What is judged by.
    pub(super) const fn sum(&self) -> Judged {
        self.sum
    }

    /// The edge that was left; `None` within the band, and as long as there is too little to tell.
    pub(super) fn left(&self, band: &Band) -> Option<Left> {
        let Judged {
            decided,
            compared,
            denials,
            permits,
            errors,
        } = self.sum;
        let edges = [
            // Whether it failed is known of all that it decides, also when its policy was not asked.
            ("errors", errors, band.errors, decided),
            ("denials", denials, band.denials, compared),
            ("permits", permits, band.permits, compared),
        ];
        let left = |count: u64, most: u32, of: u64| {
            of >= band.least
                && (count > CHANCE || (most == 0 && count > 0))
                && count.saturating_mul(1_000_000) > u64::from(most).saturating_mul(of)
        };
        let mut edges = edges.into_iter();
        let (edge, count, most, compared) =
            edges.find(|(_, count, most, of)| left(*count, *most, *of))?;
        Some(Left {
            edge,
            count,
            compared,
            most,
        })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAND: Band = Band {
        denials: 20_000,
        permits: 20_000,
        errors: 1_000,
        over: 10,
        least: 100,
    };

    fn judged(compared: u64, denials: u64) -> Judged {
        Judged {
            decided: compared,
            compared,
            denials,
            ..Judged::default()
        }
    }

    #[test]
    fn inside_the_band_nothing_happens_and_outside_the_edge_is_named() {
        let mut window = Window::default();
        window.take(0, judged(1_000, 20), &BAND);
        assert_eq!(window.left(&BAND), None, "exactly the share is within");
        window.take(1, judged(1_000, 21), &BAND);
        let left = window.left(&BAND).unwrap();
        assert_eq!(left.edge, "denials");
        assert_eq!(
            left.to_string(),
            "it denied 41 of 2000 requests that its policy allows (2.0%, at most 2%)"
        );
        for (edge, judged) in [
            (
                "permits",
                Judged {
                    permits: 3,
                    decided: 100,
                    compared: 100,
                    ..Judged::default()
                },
            ),
            (
                "errors",
                Judged {
                    errors: 3,
                    denials: 3,
                    decided: 100,
                    compared: 100,
                    ..Judged::default()
                },
            ),
        ] {
            let mut window = Window::default();
            window.take(0, judged, &BAND);
            assert_eq!(window.left(&BAND).unwrap().edge, edge);
        }
    }

    #[test]
    fn too_few_requests_say_nothing_and_are_kept_until_they_do() {
        let mut window = Window::default();
        for second in 0..99 {
            window.take(second, judged(1, 1), &BAND);
            assert_eq!(window.left(&BAND), None, "after {second} s");
        }
        // The hundredth request, one and a half minutes after the first.
        window.take(99, judged(1, 1), &BAND);
        assert!(window.left(&BAND).is_some());
        assert_eq!(window.sum().compared, 100);
    }

    #[test]
    fn what_is_longer_ago_than_the_window_counts_no_more() {
        let mut window = Window::default();
        window.take(0, judged(100_000, 0), &BAND);
        for second in 1..=9 {
            window.take(second, judged(100, 100), &BAND);
        }
        assert_eq!(window.left(&BAND), None, "less than a hundredth so far");
        window.take(10, judged(100, 100), &BAND);
        assert_eq!(window.sum(), judged(1_000, 1_000));
        assert!(
            window.left(&BAND).is_some(),
            "within ten seconds of the first"
        );
    }

    #[test]
    fn two_differences_are_chance_unless_none_is_allowed() {
        let errors = |errors| Judged {
            errors,
            decided: 100,
            compared: 100,
            ..Judged::default()
        };
        let mut window = Window::default();
        window.take(0, errors(2), &BAND);
        assert_eq!(window.left(&BAND), None);
        assert!(window.left(&Band { errors: 0, ..BAND }).is_some());
        let mut window = Window::default();
        window.take(0, errors(100), &BAND);
        let all = Band {
            errors: 1_000_000,
            denials: 1_000_000,
            ..BAND
        };
        assert_eq!(window.left(&all), None, "100% lets it never go back");
    }

    #[test]
    fn errors_are_a_share_of_all_that_was_decided_also_when_few_could_be_compared() {
        let mut window = Window::default();
        let judged = Judged {
            decided: 10_000,
            compared: 150,
            errors: 10,
            ..Judged::default()
        };
        window.take(0, judged, &BAND);
        assert_eq!(window.left(&BAND), None, "ten of ten thousand are the edge");
        window.take(
            0,
            Judged {
                decided: 1,
                errors: 1,
                ..Judged::default()
            },
            &BAND,
        );
        assert_eq!(window.left(&BAND).unwrap().edge, "errors");
    }

    #[test]
    fn the_window_is_bounded_however_little_comes() {
        let band = Band {
            least: 100_000,
            ..BAND
        };
        let mut window = Window::default();
        for second in 0..5_000 {
            window.take(second, judged(1, 0), &band);
        }
        assert!(window.parts.len() <= MAX_PARTS);
        assert_eq!(
            window.sum().compared,
            5_000,
            "what is put together still counts"
        );
    }
}
