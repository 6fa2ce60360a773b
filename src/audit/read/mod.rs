//! Records read back: from files, pipes, gzip and ledgers, a line at a time.
//!
//! Memory does not grow with what is read: one line is held at a time, and a line has a bound. What
//! cannot be read is an error with its place and never ends the rest: a line that is too long or no
//! record, one that is still being written, a file that was rotated away meanwhile. What a line says is
//! for [`Entry`] to tell; who looks for an id needs not ask it.

mod entry;
pub(in crate::audit) mod scan;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use entry::{Caller, DecidedBy, Entry, Kind, NotAnEntry};

use super::ledger;
use stream::{Next, Stream};

/// Longest line, bytes. Records are at most some 100 KiB; a chunk of OPA's is one line.
pub const MAX_LINE: usize = 4 << 20;
/// Most paths that may be named.
pub const MAX_PATHS: usize = 10_000;
/// Of the paths that are named, so many are opened at once, so that no rotation takes them away.
const OPENED_EARLY: usize = 256;
/// The name of standard input.
const STDIN: &str = "-";

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named; `-` for standard input.
    pub file: Arc<Path>,
    /// From 1; 0 for the file as a whole.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// One record, as it was written.
#[derive(Debug)]
pub struct Line<'l> {
    /// An object in JSON, from brace to brace; what is between is not looked at.
    pub text: &'l [u8],
    /// Where it stands.
    pub place: Place,
}

/// What could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct Broken {
    /// Where.
    pub place: Place,
    /// Why.
    pub fault: Fault,
}

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It ends in the midst of a record, and nothing follows: it is still being written, or was cut.
    #[error("the last line is cut off: it is still being written, or the writer was killed")]
    Torn,
    /// A line is longer than [`MAX_LINE`].
    #[error("the line is longer than {} MiB", MAX_LINE >> 20)]
    TooLong,
    /// A line is no object.
    #[error("the line is no record: {0}")]
    NotARecord(&'static str),
    /// The file was there when the reading began.
    #[error("the file is gone: it was removed or rotated away while others were read")]
    Gone,
    /// Nothing but a bomb packs so densely.
    #[error(
        "it unpacks to more than {} times its size: no records do",
        stream::MAX_RATIO
    )]
    Bomb,
    /// The gzip stream is not whole, or not right.
    #[error("it cannot be decompressed: {0}")]
    Gzip(String),
    /// The system reports an error.
    #[error("it cannot be read: {0}")]
    Read(String),
}

/// Why reading did not begin.
#[derive(Debug, thiserror::Error)]
pub enum CannotOpen {
    /// Nothing was named.
    #[error("no records are named: name files, the folder of a ledger, or `-` for standard input")]
    Nothing,
    /// Too much was named.
    #[error("more than {MAX_PATHS} files are named: name a ledger's folder, or pipe them into `-`")]
    TooMany,
    /// Standard input was named twice.
    #[error("`-`, standard input, can be read once only")]
    Twice,
    /// The system reports an error.
    #[error("{}: {error}", file.display())]
    Read {
        /// Of what.
        file: PathBuf,
        /// Which.
        error: io::Error,
    },
    /// A folder is no ledger.
    #[error("{}: the folder is no ledger (it holds no `segment-….jsonl`): name its files", .0.display())]
    NoLedger(PathBuf),
    /// It is packed in a way that is not read.
    #[error("{}: this is packed with {}: unpack it into a pipe, `{} -dc {} | … -`", file.display(), how, how, file.display())]
    Packed {
        /// What.
        file: PathBuf,
        /// By which program.
        how: &'static str,
    },
}

/// How far the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the files as they are on disk.
    pub read: u64,
    /// All of them; `None` when that is not known.
    pub total: Option<u64>,
}

/// Something that is still to be read.
#[derive(Debug)]
struct Source {
    name: Arc<Path>,
    /// Opened early, or when its turn comes.
    opened: Option<Stream>,
    /// Lines of the ledger's own are left out.
    ledger: bool,
}

/// Goes through records.
#[derive(Debug)]
pub struct Records {
    waiting: VecDeque<Source>,
    current: Option<Current>,
    /// Bytes of the files that are done.
    done: u64,
    total: Option<u64>,
}

#[derive(Debug)]
struct Current {
    name: Arc<Path>,
    stream: Stream,
    ledger: bool,
    /// Of the line, what was not handed out; more than nothing when a line holds several records.
    left: Range<usize>,
}

impl Records {
    /// Opens what is named: files, also with gzip inside, folders of ledgers, `-` for standard input. They
    /// are read in the order in which they are named.
    ///
    /// # Errors
    /// [`CannotOpen`]; what goes wrong later is told by [`Records::next`].
    pub fn open(paths: &[PathBuf]) -> Result<Self, CannotOpen> {
        if paths.is_empty() {
            return Err(CannotOpen::Nothing);
        }
        if paths
            .iter()
            .filter(|path| *path == Path::new(STDIN))
            .count()
            > 1
        {
            return Err(CannotOpen::Twice);
        }
        let mut sources = VecDeque::new();
        let mut total = Some(0_u64);
        for path in paths {
            let failed = |error| CannotOpen::Read {
                file: path.clone(),
                error,
            };
            if path == Path::new(STDIN) {
                total = None;
                sources.push_back(Source {
                    name: path.as_path().into(),
                    opened: Some(Stream::standard_input().map_err(failed)?),
                    ledger: false,
                });
                continue;
            }
            let found = path.metadata().map_err(failed)?;
            if found.is_dir() {
                let segments = ledger::segment_files(path).map_err(failed)?;
                if segments.is_empty() {
                    return Err(CannotOpen::NoLedger(path.clone()));
                }
                for (file, bytes) in segments {
                    total = total.map(|total| total + bytes);
                    sources.push_back(Source::later(&file, true));
                }
                continue;
            }
            total = total.filter(|_| found.is_file());
            total = total.map(|total| total + found.len());
            let mut source = Source::later(path, false);
            if sources.len() < OPENED_EARLY {
                let opened = Stream::open(path).map_err(failed)?;
                if let Some(how) = opened.packed() {
                    let file = path.clone();
                    return Err(CannotOpen::Packed { file, how });
                }
                source.opened = Some(opened);
            }
            sources.push_back(source);
        }
        if sources.len() > MAX_PATHS {
            return Err(CannotOpen::TooMany);
        }
        Ok(Self {
            waiting: sources,
            current: None,
            done: 0,
            total,
        })
    }

    /// The next record, or what is there in its place; `None` at the end.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not lend the line"
    )]
    pub fn next(&mut self) -> Option<Result<Line<'_>, Broken>> {
        loop {
            if self.current.is_none()
                && let Err(broken) = self.begin()?
            {
                return Some(Err(broken));
            }
            let current = self.current.as_mut()?;
            match current.advance() {
                Step::Record(range) => {
                    // Borrowed anew: a borrow that is returned from within a loop lasts for all of it.
                    let current = self.current.as_ref()?;
                    let text = current.stream.line.get(range).unwrap_or_default();
                    let place = current.place();
                    return Some(Ok(Line { text, place }));
                }
                Step::Broken(fault) => {
                    let place = current.place();
                    return Some(Err(Broken { place, fault }));
                }
                Step::Over(fault) => {
                    let place = current.place();
                    self.done = self.done.saturating_add(current.stream.taken());
                    self.current = None;
                    if let Some(fault) = fault {
                        return Some(Err(Broken { place, fault }));
                    }
                }
            }
        }
    }

    /// How far the reading is.
    pub fn progress(&self) -> Progress {
        let current = self.current.as_ref().map_or(0, |now| now.stream.taken());
        Progress {
            read: self.done.saturating_add(current),
            total: self.total,
        }
    }

    /// Begins with the next file; `None` when there is none.
    fn begin(&mut self) -> Option<Result<(), Broken>> {
        let source = self.waiting.pop_front()?;
        let name = source.name;
        let broken = |fault| {
            let file = Arc::clone(&name);
            Some(Err(Broken {
                place: Place { file, line: 0 },
                fault,
            }))
        };
        let stream = match source.opened {
            Some(stream) => stream,
            None => match Stream::open(&name) {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return broken(Fault::Gone);
                }
                Err(error) => return broken(Fault::Read(error.to_string())),
            },
        };
        if let Some(how) = stream.packed() {
            return broken(Fault::Read(format!("this is packed with {how}")));
        }
        self.current = Some(Current {
            name,
            stream,
            ledger: source.ledger,
            left: 0..0,
        });
        Some(Ok(()))
    }
}

impl Source {
    fn later(path: &Path, ledger: bool) -> Self {
        Self {
            name: path.into(),
            opened: None,
            ledger,
        }
    }
}

/// What comes next of a file.
enum Step {
    Record(Range<usize>),
    Broken(Fault),
    /// The file is at its end, or of no more use.
    Over(Option<Fault>),
}

impl Current {
    fn place(&self) -> Place {
        Place {
            file: Arc::clone(&self.name),
            line: self.stream.number,
        }
    }

    fn advance(&mut self) -> Step {
        loop {
            if !self.left.is_empty() {
                match self.element() {
                    Some(step) => return step,
                    None => continue,
                }
            }
            let torn = match self.stream.next() {
                Next::Line => false,
                Next::Torn => true,
                Next::TooLong => return Step::Broken(Fault::TooLong),
                Next::Over(fault) => return Step::Over(fault),
            };
            let line = &self.stream.line;
            let Some(range) = scan::trimmed(line) else {
                // An empty line says nothing.
                continue;
            };
            let text = line.get(range.clone()).unwrap_or_default();
            if torn && scan::object_end(text) != Some(text.len()) {
                return Step::Over(Some(Fault::Torn));
            }
            if self.ledger && ledger::is_its_own(text) {
                continue;
            }
            match text {
                [b'{', .., b'}'] => return Step::Record(range),
                [b'{', ..] => {
                    let why = "the object does not end on the line (`jq -c .` writes one a line)";
                    return Step::Broken(Fault::NotARecord(why));
                }
                // What OPA uploads is an array, whose elements stand on lines of their own.
                [b'[' | b',' | b']', ..] => self.left = range,
                _ => return Step::Broken(Fault::NotARecord("it does not begin with `{`")),
            }
        }
    }

    /// The next element of an array, or nothing when none is left on this line.
    fn element(&mut self) -> Option<Step> {
        let line = &self.stream.line;
        let begins = |byte: &u8| !matches!(byte, b'[' | b']' | b',') && !byte.is_ascii_whitespace();
        let left = line.get(self.left.clone()).unwrap_or_default();
        let Some(skipped) = left.iter().position(begins) else {
            self.left = 0..0;
            return None;
        };
        let from = self.left.start + skipped;
        let element = left.get(skipped..).unwrap_or_default();
        match scan::object_end(element) {
            Some(length) => {
                self.left.start = from + length;
                Some(Step::Record(from..from + length))
            }
            None => {
                self.left = 0..0;
                let why = "an element of the array is no whole object";
                Some(Step::Broken(Fault::NotARecord(why)))
            }
        }
    }
}
