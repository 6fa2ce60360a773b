//! Why a bundle is not used.

use std::fmt;

/// What kind of fault, as a stable word for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It could not be fetched.
    Fetch,
    /// The file or folder could not be read, or the last good one not be kept.
    Disk,
    /// It is no `.tar.gz`, or one that nobody needs.
    Archive,
    /// It is larger than the bounds.
    TooLarge,
    /// It is not signed as the configuration asks.
    Signature,
    /// Its manifest is wrong, or its content lies outside its roots.
    Manifest,
    /// A file in it cannot be read.
    Content,
    /// It is of a form that is not taken: a delta, WebAssembly, Rego version 0.
    Unsupported,
    /// It is older than the one in force.
    Rollback,
    /// A policy that uses it would not be good any more.
    Policy,
}

impl Kind {
    /// The word.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Disk => "disk",
            Self::Archive => "archive",
            Self::TooLarge => "too_large",
            Self::Signature => "signature",
            Self::Manifest => "manifest",
            Self::Content => "content",
            Self::Unsupported => "unsupported",
            Self::Rollback => "rollback",
            Self::Policy => "policy",
        }
    }
}

/// Why a bundle is not used, for the log and for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// The entry of the archive that it is about.
    pub entry: Option<String>,
    /// Line and column in the entry, each from 1.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl Fault {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            entry: None,
            at: None,
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn of(kind: Kind, entry: &str, message: impl Into<String>) -> Self {
        Self {
            // A name that is refused may hold anything.
            entry: Some(entry.escape_debug().to_string()),
            ..Self::new(kind, message)
        }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }

    pub(super) fn at(self, at: Option<(usize, usize)>) -> Self {
        Self { at, ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = &self.entry {
            write!(f, "{entry}:")?;
            if let Some((line, column)) = self.at {
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}
