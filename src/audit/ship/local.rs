//! A file or standard output that records are copied to.

use std::io;

use crate::audit::sink::{AppendFile, AuditSink, Standard};

/// Where lines are appended.
pub(super) struct Local {
    place: Place,
    /// Bytes of the first line that comes next which are there already.
    begun: usize,
    opened: bool,
}

enum Place {
    File(AppendFile),
    Output(Standard),
}

impl Local {
    pub(super) fn file(path: std::path::PathBuf) -> Self {
        Self::new(Place::File(AppendFile::new(path)))
    }

    pub(super) fn output() -> Self {
        Self::new(Place::Output(Standard::Output))
    }

    const fn new(place: Place) -> Self {
        Self {
            place,
            begun: 0,
            opened: false,
        }
    }

    /// Appends whole lines, and says how many got there. The next call is to begin with the first that
    /// did not.
    pub(super) fn append(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        if let Place::File(file) = &mut self.place {
            match file.refresh() {
                // What was begun was begun elsewhere.
                Ok(true) => self.begun = 0,
                Ok(false) => {}
                Err(error) => return (0, Err(error)),
            }
            if !self.opened {
                if let Err(error) = file.end_line() {
                    return (0, Err(error));
                }
                self.opened = true;
            }
        }
        let mut taken = self.begun;
        let written = loop {
            let rest = lines.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            let written = match &mut self.place {
                Place::File(file) => file.write(rest),
                Place::Output(output) => output.write(rest),
            };
            match written {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => taken += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let there = lines.get(..taken).unwrap_or_default();
        let whole = memchr::memrchr(b'\n', there).map_or(0, |at| at + 1);
        self.begun = taken - whole;
        (memchr::memchr_iter(b'\n', there).count(), written)
    }

    /// Forces what was written to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.place {
            Place::File(file) => file.sync(),
            Place::Output(_) => Ok(()),
        }
    }
}
