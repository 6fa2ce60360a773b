//! What came of the records: counts, and a few examples. Bounded, however many records there are.

use std::collections::BTreeMap;

/// Most kinds of change that are told apart.
const MAX_KINDS: usize = 2_000;
/// Most callers that are told apart, over all kinds of change.
const MAX_CALLERS: usize = 50_000;
/// Most causes for which records are not judged.
const MAX_CAUSES: usize = 200;
/// Most bytes of inputs that are kept for cases.
const MAX_KEPT: usize = 64 << 20;

/// What is kept beside the counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Of each kind.
    pub(super) examples: usize,
    /// Whether examples of what stayed the same are kept.
    pub(super) same: bool,
    /// Whether examples have their inputs.
    pub(super) keeps: bool,
}

/// How an answer differs from what was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// No, and now yes.
    Gain,
    /// Yes, and now no.
    Loss,
    /// The same word for another reason.
    Reason,
    /// The same word and reason, and something else differs.
    Answer,
    /// Nothing.
    Same,
}

impl Change {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Gain => "gain",
            Self::Loss => "loss",
            Self::Reason => "reason",
            Self::Answer => "answer",
            Self::Same => "same",
        }
    }
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) change: Change,
    pub(super) policy: String,
    pub(super) route: String,
    pub(super) was: String,
    pub(super) now: String,
}

/// One record.
#[derive(Debug, Clone)]
pub(super) struct Example {
    /// Its number among all that were read.
    pub(super) number: u64,
    pub(super) place: String,
    pub(super) time: String,
    pub(super) request: String,
    pub(super) caller: String,
    pub(super) request_id: String,
    pub(super) decision_id: Option<String>,
    pub(super) kept: Option<Kept>,
}

/// What a case is made of.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) rule: String,
    /// Whether `allow` and `reason` of a case are read from such answers.
    pub(super) ours: bool,
    /// JSON.
    pub(super) input: String,
    pub(super) was: Side,
    pub(super) now: Side,
}

/// An answer, then or now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) allow: bool,
    pub(super) reason: Option<String>,
    /// JSON; `None` when there was none.
    pub(super) answer: Option<String>,
}

impl Side {
    /// As it is shown.
    pub(super) fn shown(&self) -> String {
        let reason = self.reason.clone();
        reason.unwrap_or_else(|| "no reason given".to_owned())
    }
}

/// Records of one kind.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) records: u64,
    pub(super) callers: BTreeMap<String, u64>,
    /// Records of callers that are not told apart.
    pub(super) others: u64,
    /// The first ones, in their order.
    pub(super) examples: Vec<Example>,
}

/// Records that are not judged, for one cause.
#[derive(Debug, Clone)]
pub(super) struct Left {
    pub(super) records: u64,
    /// The number and the place of the first.
    pub(super) first: (u64, String),
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Lines that were read.
    pub(super) read: u64,
    /// Of these, records that the sieve takes.
    pub(super) chosen: u64,
    /// Of these, those with the same answer.
    pub(super) same: u64,
    /// Answers that were compared byte by byte.
    pub(super) compared: u64,
    /// Of these, the equal ones.
    pub(super) equal: u64,
    /// Decisions that a candidate made.
    pub(super) by_candidates: u64,
    /// Records for which a policy was asked more than once, since its budget was spent.
    pub(super) retried: u64,
    pub(super) kinds: BTreeMap<Kind, Group>,
    /// Changes of kinds that are not told apart.
    pub(super) untold: [u64; 5],
    /// By cause.
    pub(super) left: BTreeMap<String, Left>,
    /// What could not be read, by cause.
    pub(super) unread: BTreeMap<String, Left>,
    callers: usize,
    kept: usize,
    /// Examples that became too many bytes to keep.
    pub(super) not_kept: u64,
}

impl Tally {
    /// Records that were judged.
    pub(super) fn judged(&self) -> u64 {
        self.chosen.saturating_sub(self.left_out())
    }

    /// Records that were not.
    pub(super) fn left_out(&self) -> u64 {
        self.left.values().map(|left| left.records).sum()
    }

    pub(super) fn gains(&self) -> u64 {
        self.of(Change::Gain)
    }

    pub(super) fn losses(&self) -> u64 {
        self.of(Change::Loss)
    }

    /// How many changed like this.
    pub(super) fn of(&self, change: Change) -> u64 {
        let told = self.kinds.iter().filter(|(kind, _)| kind.change == change);
        let told: u64 = told.map(|(_, group)| group.records).sum();
        told + self.untold.get(index(change)).copied().unwrap_or(0)
    }

    /// A record that is not judged.
    pub(super) fn leave(&mut self, cause: &str, number: u64, place: impl FnOnce() -> String) {
        note(&mut self.left, cause, number, place);
    }

    /// Something that is no record.
    pub(super) fn skip(&mut self, cause: &str, number: u64, place: impl FnOnce() -> String) {
        note(&mut self.unread, cause, number, place);
    }

    /// A record that was judged. `example` makes one, with what a case needs if that is asked for.
    pub(super) fn judge(
        &mut self,
        kind: Kind,
        caller: impl FnOnce() -> String,
        number: u64,
        terms: Terms,
        example: impl FnOnce(bool) -> Example,
    ) {
        if kind.change == Change::Same {
            self.same += 1;
            if !terms.same {
                return;
            }
        }
        if !self.kinds.contains_key(&kind) && self.kinds.len() >= MAX_KINDS {
            if let Some(count) = self.untold.get_mut(index(kind.change)) {
                *count += 1;
            }
            return;
        }
        let group = self.kinds.entry(kind).or_default();
        group.records += 1;
        let caller = caller();
        match group.callers.get_mut(&caller) {
            Some(count) => *count += 1,
            None if self.callers < MAX_CALLERS => {
                self.callers += 1;
                group.callers.insert(caller, 1);
            }
            None => group.others += 1,
        }
        let last = group.examples.last().map(|last| last.number);
        if group.examples.len() < terms.examples || last.is_some_and(|last| number < last) {
            let keeps = terms.keeps && self.kept < MAX_KEPT;
            let example = example(keeps);
            let bytes = example.kept.as_ref().map_or(0, |kept| kept.input.len());
            self.kept += bytes;
            self.not_kept += u64::from(terms.keeps && !keeps);
            let at = group
                .examples
                .partition_point(|other| other.number < number);
            group.examples.insert(at, example);
            group.examples.truncate(terms.examples);
        }
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: Self, terms: Terms) {
        self.read += other.read;
        self.chosen += other.chosen;
        self.same += other.same;
        self.compared += other.compared;
        self.equal += other.equal;
        self.by_candidates += other.by_candidates;
        self.retried += other.retried;
        self.not_kept += other.not_kept;
        for (count, more) in self.untold.iter_mut().zip(other.untold) {
            *count += more;
        }
        for (kind, group) in other.kinds {
            if !self.kinds.contains_key(&kind) && self.kinds.len() >= MAX_KINDS {
                if let Some(count) = self.untold.get_mut(index(kind.change)) {
                    *count += group.records;
                }
                continue;
            }
            let own = self.kinds.entry(kind).or_default();
            own.records += group.records;
            own.others += group.others;
            for (caller, records) in group.callers {
                *own.callers.entry(caller).or_insert(0) += records;
            }
            own.examples.extend(group.examples);
            own.examples.sort_by_key(|example| example.number);
            own.examples.truncate(terms.examples);
        }
        for (mine, theirs) in [
            (&mut self.left, other.left),
            (&mut self.unread, other.unread),
        ] {
            for (cause, left) in theirs {
                match mine.get_mut(&cause) {
                    Some(own) => {
                        own.records += left.records;
                        if left.first.0 < own.first.0 {
                            own.first = left.first;
                        }
                    }
                    None => drop(mine.insert(cause, left)),
                }
            }
        }
    }
}

fn note(
    causes: &mut BTreeMap<String, Left>,
    cause: &str,
    number: u64,
    place: impl FnOnce() -> String,
) {
    let cause = if causes.contains_key(cause) || causes.len() < MAX_CAUSES {
        cause
    } else {
        "for other causes"
    };
    match causes.get_mut(cause) {
        Some(left) => left.records += 1,
        None => {
            let first = (number, place());
            let left = Left { records: 1, first };
            causes.insert(cause.to_owned(), left);
        }
    }
}

const fn index(change: Change) -> usize {
    match change {
        Change::Gain => 0,
        Change::Loss => 1,
        Change::Reason => 2,
        Change::Answer => 3,
        Change::Same => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        examples: 2,
        same: false,
        keeps: true,
    };

    fn kind(change: Change, route: &str) -> Kind {
        Kind {
            change,
            policy: "p".to_owned(),
            route: route.to_owned(),
            was: "a".to_owned(),
            now: "b".to_owned(),
        }
    }

    fn example(number: u64, bytes: usize) -> impl FnOnce(bool) -> Example {
        let side = Side {
            allow: true,
            reason: None,
            answer: None,
        };
        move |keeps| Example {
            number,
            place: String::new(),
            time: String::new(),
            request: String::new(),
            caller: String::new(),
            request_id: String::new(),
            decision_id: None,
            kept: keeps.then(|| Kept {
                rule: String::new(),
                ours: true,
                input: "x".repeat(bytes),
                was: side.clone(),
                now: side,
            }),
        }
    }

    fn judge(tally: &mut Tally, kind: Kind, caller: &str, number: u64) {
        tally.chosen += 1;
        tally.judge(
            kind,
            || caller.to_owned(),
            number,
            TERMS,
            example(number, 1),
        );
    }

    #[test]
    fn kinds_and_callers_are_bounded_and_what_is_beyond_is_counted() {
        let mut tally = Tally::default();
        for number in 0..MAX_KINDS + 5 {
            let number = u64::try_from(number).unwrap();
            judge(
                &mut tally,
                kind(Change::Gain, &number.to_string()),
                "c",
                number,
            );
        }
        assert_eq!(tally.kinds.len(), MAX_KINDS);
        assert_eq!(tally.gains(), u64::try_from(MAX_KINDS + 5).unwrap());

        let mut tally = Tally::default();
        for number in 0..MAX_CALLERS + 5 {
            let number = u64::try_from(number).unwrap();
            judge(
                &mut tally,
                kind(Change::Loss, "r"),
                &number.to_string(),
                number,
            );
        }
        let group = tally.kinds.values().next().unwrap();
        assert_eq!((group.callers.len(), group.others), (MAX_CALLERS, 5));

        let mut tally = Tally::default();
        for number in 0..MAX_CAUSES + 5 {
            tally.leave(&number.to_string(), 1, String::new);
        }
        assert_eq!(tally.left.len(), MAX_CAUSES + 1);
        assert_eq!(tally.left_out(), u64::try_from(MAX_CAUSES + 5).unwrap());
    }

    #[test]
    fn the_first_examples_are_kept_whoever_saw_them() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        for number in [4, 7, 9] {
            judge(&mut one, kind(Change::Gain, "r"), "a", number);
        }
        for number in [2, 5, 8] {
            judge(&mut two, kind(Change::Gain, "r"), "b", number);
        }
        one.leave("why", 4, || "four".to_owned());
        two.leave("why", 2, || "two".to_owned());
        one.merge(two, TERMS);
        let group = one.kinds.values().next().unwrap();
        let numbers: Vec<u64> = group.examples.iter().map(|one| one.number).collect();
        assert_eq!(numbers, [2, 4]);
        assert_eq!(group.records, 6);
        assert_eq!(one.left["why"].first, (2, "two".to_owned()));
        assert_eq!(one.left["why"].records, 2);
    }

    #[test]
    fn inputs_for_cases_are_kept_up_to_a_bound_and_what_is_beyond_is_counted() {
        let mut tally = Tally::default();
        let half = MAX_KEPT / 2 + 1;
        for number in 0..3 {
            let kind = kind(Change::Gain, &number.to_string());
            tally.judge(kind, String::new, number, TERMS, example(number, half));
        }
        let kept = tally.kinds.values().flat_map(|group| &group.examples);
        assert_eq!(kept.filter(|one| one.kept.is_some()).count(), 2);
        assert_eq!(tally.not_kept, 1);
    }

    #[test]
    fn what_stays_the_same_is_counted_and_kept_only_when_asked_for() {
        let mut tally = Tally::default();
        judge(&mut tally, kind(Change::Same, "r"), "a", 1);
        assert!(tally.kinds.is_empty() && tally.same == 1);
        let terms = Terms {
            same: true,
            ..TERMS
        };
        tally.judge(
            kind(Change::Same, "r"),
            String::new,
            2,
            terms,
            example(2, 1),
        );
        assert_eq!((tally.kinds.len(), tally.same), (1, 2));
    }
}
