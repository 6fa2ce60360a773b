//! When a candidate that decides has to stop: what it may differ from its policy, and over how long.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;

use super::callers::{Callers, of_the_first};
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
    /// Fewest callers that denials come from: the band must be left without those of all but one of
    /// them, those with the most.
    pub(super) callers: usize,
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

/// Why a candidate stays although more is denied than its band allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    left: Left,
    callers: usize,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, but fewer than {} callers were denied so much: it stays (`rollback.callers`)",
            self.left, self.callers
        )
    }
}

/// Requests of a part of the window, and who was denied.
#[derive(Debug, Clone, Default)]
struct Part {
    /// The second in which it began.
    second: u64,
    judged: Judged,
    denied: Callers,
}

/// The requests by which a candidate is judged now: those of the last seconds, or the last so many.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// Oldest first.
    parts: VecDeque<Part>,
    sum: Judged,
}

impl Window {
    /// Takes what was judged since the last time; `now` is in seconds, from anywhere.
    pub(super) fn take(&mut self, now: u64, more: Judged, denied: &Callers, band: &Band) {
        if more.decided > 0 {
            self.sum.add(more);
            if self.parts.back().is_none_or(|part| part.second != now) {
                self.parts.push_back(Part {
                    second: now,
                    ..Part::default()
                });
            }
            if let Some(part) = self.parts.back_mut() {
                part.judged.add(more);
                part.denied.add(denied);
            }
        }
        while let Some(oldest) = self.parts.front() {
            let rest = self.sum.less(oldest.judged);
            if oldest.second.saturating_add(band.over) > now || rest.compared < band.least {
                break;
            }
            self.sum = rest;
            self.parts.pop_front();
        }
        if self.parts.len() > MAX_PARTS
            && let Some(oldest) = self.parts.pop_front()
            && let Some(next) = self.parts.front_mut()
        {
            next.judged.add(oldest.judged);
            next.denied.add(&oldest.denied);
        }
    }

    /// What is judged by.
    pub(super) const fn sum(&self) -> Judged {
        self.sum
    }

    /// The edge that was left; `None` within the band, and as long as there is too little to tell.
    ///
    /// Denials count by callers, too. Who is denied can ask again, as often as they like, and would bring
    /// back a policy that lets them in: a candidate goes only if it would without those who were denied
    /// most. What it permits, and that it fails, counts whoever asks: one caller who is let in against the
    /// policy is one too many, one who makes it fail has found a fault of its own, and to go back is the
    /// safe side of both.
    pub(super) fn left(&self, band: &Band) -> Option<Left> {
        self.edge(band, true)
    }

    /// Why it stays, where it would go if callers did not count.
    pub(super) fn held(&self, band: &Band) -> Option<Held> {
        if self.edge(band, true).is_some() {
            return None;
        }
        let left = self.edge(band, false)?;
        let callers = band.callers;
        Some(Held { left, callers })
    }

    fn edge(&self, band: &Band, by_callers: bool) -> Option<Left> {
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
            (count > CHANCE || (most == 0 && count > 0))
                && count.saturating_mul(1_000_000) > u64::from(most).saturating_mul(of)
        };
        let few = |edge: &str, count: u64, most: u32, of: u64| {
            if !by_callers || edge != "denials" || band.callers < 2 {
                return false;
            }
            let denied = self.parts.iter().map(|part| &part.denied);
            let theirs = of_the_first(denied, band.callers - 1).min(count);
            !left(count - theirs, most, of - theirs)
        };
        let mut edges = edges.into_iter();
        let (edge, count, most, compared) = edges.find(|(edge, count, most, of)| {
            *of >= band.least && left(*count, *most, *of) && !few(edge, *count, *most, *of)
        })?;
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
        callers: 1,
    };

    fn take(window: &mut Window, second: u64, more: Judged, band: &Band) {
        window.take(second, more, &Callers::default(), band);
    }

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
        take(&mut window, 0, judged(1_000, 20), &BAND);
        assert_eq!(window.left(&BAND), None, "exactly the share is within");
        take(&mut window, 1, judged(1_000, 21), &BAND);
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
            take(&mut window, 0, judged, &BAND);
            assert_eq!(window.left(&BAND).unwrap().edge, edge);
        }
    }

    #[test]
    fn too_few_requests_say_nothing_and_are_kept_until_they_do() {
        let mut window = Window::default();
        for second in 0..99 {
            take(&mut window, second, judged(1, 1), &BAND);
            assert_eq!(window.left(&BAND), None, "after {second} s");
        }
        // The hundredth request, one and a half minutes after the first.
        take(&mut window, 99, judged(1, 1), &BAND);
        assert!(window.left(&BAND).is_some());
        assert_eq!(window.sum().compared, 100);
    }

    #[test]
    fn what_is_longer_ago_than_the_window_counts_no_more() {
        let mut window = Window::default();
        take(&mut window, 0, judged(100_000, 0), &BAND);
        for second in 1..=9 {
            take(&mut window, second, judged(100, 100), &BAND);
        }
        assert_eq!(window.left(&BAND), None, "less than a hundredth so far");
        take(&mut window, 10, judged(100, 100), &BAND);
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
        take(&mut window, 0, errors(2), &BAND);
        assert_eq!(window.left(&BAND), None);
        assert!(window.left(&Band { errors: 0, ..BAND }).is_some());
        let mut window = Window::default();
        take(&mut window, 0, errors(100), &BAND);
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
        take(&mut window, 0, judged, &BAND);
        assert_eq!(window.left(&BAND), None, "ten of ten thousand are the edge");
        take(
            &mut window,
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
            take(&mut window, second, judged(1, 0), &band);
        }
        assert!(window.parts.len() <= MAX_PARTS);
        assert_eq!(
            window.sum().compared,
            5_000,
            "what is put together still counts"
        );
    }

    /// So many requests of each caller, all of them denied, among so many in all.
    fn denied(window: &mut Window, second: u64, compared: u64, by: &[(u64, u64)]) {
        let mut callers = Callers::default();
        for (caller, times) in by {
            callers.count(*caller, *times);
        }
        let denials = by.iter().map(|(_, times)| times).sum();
        window.take(second, judged(compared, denials), &callers, &BAND);
    }

    #[test]
    fn one_caller_cannot_bring_a_stricter_candidate_back_however_often_they_ask() {
        let band = Band { callers: 3, ..BAND };
        let mut window = Window::default();
        // What the candidate is for: now and then somebody is denied, within the band.
        let others: Vec<(u64, u64)> = (10..20).map(|caller| (caller, 1)).collect();
        denied(&mut window, 0, 1_000, &others);
        assert_eq!((window.left(&band), window.held(&band)), (None, None));
        for second in 1..10 {
            denied(&mut window, second, 5_000, &[(1, 3_000)]);
            denied(&mut window, second, 5_000, &[(2, 2_000)]);
        }
        assert!(window.left(&BAND).is_some(), "by requests it would go");
        assert_eq!(window.left(&band), None);
        let held = window.held(&band).unwrap().to_string();
        assert!(held.contains("fewer than 3 callers"), "{held}");
        // A third one asks as often.
        denied(&mut window, 9, 6_000, &[(3, 6_000)]);
        assert_eq!(window.left(&band).unwrap().edge, "denials");
        assert_eq!(window.held(&band), None);
    }

    #[test]
    fn who_is_denied_by_a_candidate_that_denies_everybody_is_many_at_once() {
        let band = Band { callers: 3, ..BAND };
        let mut window = Window::default();
        denied(&mut window, 0, 99, &[(1, 33), (2, 33), (3, 33)]);
        assert_eq!(window.left(&band), None, "too few requests");
        denied(&mut window, 0, 1, &[(3, 1)]);
        assert!(window.left(&band).is_some());
    }

    #[test]
    fn what_is_permitted_or_fails_counts_whoever_asks() {
        let band = Band { callers: 3, ..BAND };
        for (edge, permits, errors) in [("permits", 50, 0), ("errors", 0, 50)] {
            let mut window = Window::default();
            let more = Judged {
                permits,
                errors,
                ..judged(100, 0)
            };
            take(&mut window, 0, more, &band);
            assert_eq!(window.left(&band).unwrap().edge, edge);
        }
    }
}
