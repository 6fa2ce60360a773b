//! What becomes of whole lines between the workers' pages and the sink.
//!
//! Stages run on the audit thread, one line after the other, before a byte of it leaves memory: values
//! are masked first, then it is told why something was refused, then the line is kept for whoever
//! looks at what happened just now. Without stages no line is copied.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// Something that sees each record's line on its way to the sink.
///
/// It runs on the audit thread: what it takes too long for waits with all lines behind it, and with
/// them their seats. A stage that panics loses the line, counted: it may have held what must not be
/// shown. One that must not lose it catches its panics itself.
pub trait Stage: Send + 'static {
    /// Where in the row it stands.
    fn place(&self) -> Place;

    /// Sees a line of JSON, without its line break. What it writes to `changed`, which is empty,
    /// takes the line's place when it answers [`Passed::Changed`]: a line without a line break, too.
    fn line(&mut self, line: &[u8], changed: &mut Vec<u8>) -> Passed;

    /// All lines that were there have passed: time to tell who waits for news.
    fn pause(&mut self) {}
}

/// The order of stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Takes out what must not leave memory.
    Mask,
    /// Says why something was refused.
    Why,
    /// Keeps what happened just now.
    Recent,
}

/// What a stage did with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It stays as it was.
    Left,
    /// What was written takes its place.
    Changed,
    /// It goes no further; the stage counts it. Its seat is free.
    Dropped,
}

/// The stages of a queue, in their order. A clone has the same ones.
#[derive(Clone, Default)]
pub(super) struct Stages(Arc<Mutex<Vec<Box<dyn Stage>>>>);

impl fmt::Debug for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stages").finish_non_exhaustive()
    }
}

/// What is left of a page.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Through {
    /// Lines that go on.
    pub(super) kept: usize,
    /// Lines that a stage dropped.
    pub(super) dropped: usize,
    /// Lines that were lost, for a stage panicked or broke the format.
    pub(super) lost: usize,
}

impl Stages {
    /// Adds a stage, where it belongs.
    pub(super) fn add(&self, stage: Box<dyn Stage>) {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = stages.partition_point(|other| other.place() <= stage.place());
        stages.insert(at, stage);
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        let stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !stages.is_empty()
    }

    /// Hands the whole lines of a page through all stages. The page is only written anew, into
    /// `spare`, which is empty, from the first line on that is not left as it was; then they change
    /// places.
    pub(super) fn pass(&self, page: &mut Vec<u8>, spare: &mut Vec<u8>) -> Through {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut through = Through::default();
        let (mut line, mut next) = (Vec::new(), Vec::new());
        // Up to here nothing was changed; `spare` has what comes after.
        let mut same = None;
        let mut begin = 0;
        for end in memchr::memchr_iter(b'\n', page) {
            let at = std::mem::replace(&mut begin, end + 1);
            let text = page.get(at..end).unwrap_or_default();
            let mut passed = Passed::Left;
            for stage in stages.iter_mut() {
                next.clear();
                let now = if passed == Passed::Changed {
                    &line
                } else {
                    text
                };
                let result = catch_unwind(AssertUnwindSafe(|| stage.line(now, &mut next)));
                match result {
                    Ok(Passed::Left) => {}
                    Ok(Passed::Changed) if sound(&next) => {
                        std::mem::swap(&mut line, &mut next);
                        passed = Passed::Changed;
                    }
                    Ok(Passed::Dropped) => {
                        passed = Passed::Dropped;
                        through.dropped += 1;
                        break;
                    }
                    Ok(Passed::Changed) | Err(_) => {
                        tracing::error!(stage = ?stage.place(),
                            "a stage of the audit thread broke: the record is lost");
                        passed = Passed::Dropped;
                        through.lost += 1;
                        break;
                    }
                }
            }
            match passed {
                Passed::Left if same.is_none() => {}
                Passed::Left => push(spare, text),
                Passed::Changed => {
                    same.get_or_insert(at);
                    push(spare, &line);
                }
                Passed::Dropped => {
                    same.get_or_insert(at);
                }
            }
            through.kept += usize::from(passed != Passed::Dropped);
        }
        for stage in stages.iter_mut() {
            // It can lose nothing any more.
            let _ = catch_unwind(AssertUnwindSafe(|| stage.pause()));
        }
        drop(stages);
        if let Some(same) = same {
            // The smaller part moves.
            spare.splice(..0, page.drain(..same));
            std::mem::swap(page, spare);
            spare.clear();
        }
        through
    }
}

fn push(page: &mut Vec<u8>, line: &[u8]) {
    page.extend_from_slice(line);
    page.push(b'\n');
}

/// Whether it is one line that is not empty.
fn sound(line: &[u8]) -> bool {
    !line.is_empty() && memchr::memchr(b'\n', line).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct By<F>(Place, F);

    impl<F: FnMut(&[u8], &mut Vec<u8>) -> Passed + Send + 'static> Stage for By<F> {
        fn place(&self) -> Place {
            self.0
        }

        fn line(&mut self, line: &[u8], changed: &mut Vec<u8>) -> Passed {
            (self.1)(line, changed)
        }
    }

    fn through(stages: &Stages, page: &str) -> (String, Through) {
        let (mut page, mut spare) = (page.as_bytes().to_vec(), Vec::new());
        let through = stages.pass(&mut page, &mut spare);
        assert!(spare.is_empty());
        (String::from_utf8(page).unwrap(), through)
    }

    #[test]
    fn stages_stand_in_their_order_whoever_came_first() {
        let stages = Stages::default();
        for (place, mark) in [
            (Place::Recent, b'r'),
            (Place::Mask, b'm'),
            (Place::Why, b'w'),
        ] {
            stages.add(Box::new(By(
                place,
                move |line: &[u8], out: &mut Vec<u8>| {
                    out.extend_from_slice(line);
                    out.push(mark);
                    Passed::Changed
                },
            )));
        }
        assert_eq!(through(&stages, "1\n2\n").0, "1mwr\n2mwr\n");
    }

    #[test]
    fn what_is_left_alone_stays_where_it_is() {
        let stages = Stages::default();
        stages.add(Box::new(By(Place::Recent, |_: &[u8], _: &mut Vec<u8>| {
            Passed::Left
        })));
        let mut page = b"1\n2\n".to_vec();
        let before = page.as_ptr();
        let through = stages.pass(&mut page, &mut Vec::new());
        assert_eq!((page.as_ptr(), through.kept), (before, 2));
    }

    #[test]
    fn lines_are_changed_and_dropped_wherever_they_stand() {
        for mask in 0..81_u32 {
            let wish = move |n: u32| mask / 3_u32.pow(n) % 3;
            let stages = Stages::default();
            stages.add(Box::new(By(
                Place::Mask,
                move |line: &[u8], out: &mut Vec<u8>| match wish(u32::from(line[0] - b'0')) {
                    0 => Passed::Left,
                    1 => {
                        out.extend_from_slice(b"changed ");
                        out.extend_from_slice(line);
                        Passed::Changed
                    }
                    _ => Passed::Dropped,
                },
            )));
            let expected: String = (0..4)
                .filter_map(|n| match wish(n) {
                    0 => Some(format!("{n}\n")),
                    1 => Some(format!("changed {n}\n")),
                    _ => None,
                })
                .collect();
            let (page, through) = through(&stages, "0\n1\n2\n3\n");
            assert_eq!(page, expected, "{mask}");
            assert_eq!(through.kept, expected.lines().count());
            assert_eq!(through.kept + through.dropped, 4);
        }
    }

    #[test]
    fn a_stage_that_breaks_shows_nothing_of_the_line() {
        let stages = Stages::default();
        stages.add(Box::new(By(
            Place::Mask,
            |line: &[u8], out: &mut Vec<u8>| match line {
                b"panics" => panic!("a stage"),
                b"empty" => Passed::Changed,
                b"two" => {
                    out.extend_from_slice(b"a\nb");
                    Passed::Changed
                }
                _ => Passed::Left,
            },
        )));
        let (page, through) = through(&stages, "1\npanics\nempty\ntwo\n2\n");
        assert_eq!(page, "1\n2\n");
        assert_eq!((through.kept, through.lost), (2, 3));
    }
}
