//! What is wrong with a policy, in a form that crosses from the gate's process to ours.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::schema::{Problem, Severity};

/// One finding in a policy's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::authz) struct Remark {
    /// The file as it was named to the engine.
    pub(in crate::authz) file: String,
    pub(in crate::authz) line: Option<usize>,
    pub(in crate::authz) column: Option<usize>,
    pub(in crate::authz) message: String,
    pub(in crate::authz) help: Option<String>,
    /// The policy goes live all the same.
    pub(in crate::authz) warning: bool,
}

impl Remark {
    pub(in crate::authz) fn error(
        file: &str,
        at: Option<(usize, usize)>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            line: at.map(|(line, _)| line),
            column: at.map(|(_, column)| column),
            message: message.into(),
            help: Some(help.into()),
            warning: false,
        }
    }

    pub(in crate::authz) fn warning(
        file: &str,
        at: Option<(usize, usize)>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            warning: true,
            ..Self::error(file, at, message, help)
        }
    }

    /// Reads the position out of one of the engine's messages (`--> file:line:column`, the source
    /// line, a caret, `error: what`); `file` is where the finding is when there is none.
    pub(in crate::authz) fn from_engine(file: &str, text: &str) -> Self {
        let place = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("--> "))
            .and_then(|place| {
                let mut parts = place.rsplitn(3, ':');
                let column = parts.next()?.parse().ok()?;
                let line = parts.next()?.parse().ok()?;
                Some((parts.next()?.to_owned(), (line, column)))
            });
        let message = text
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix("error: "))
            .or_else(|| text.lines().map(str::trim).find(|line| !line.is_empty()))
            .unwrap_or("the engine refuses the policy");
        let (file, at) = match place {
            Some((named, at)) => (named, Some(at)),
            None => (file.to_owned(), None),
        };
        Self {
            file,
            line: at.map(|(line, _)| line),
            column: at.map(|(_, column)| column),
            message: message.trim_end_matches('.').to_owned(),
            help: None,
            warning: false,
        }
    }

    pub(in crate::authz) fn into_problem(self, path: String) -> Problem {
        Problem {
            severity: if self.warning {
                Severity::Warning
            } else {
                Severity::Error
            },
            file: PathBuf::from(self.file),
            line: self.line,
            column: self.column,
            path,
            message: self.message,
            help: self.help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_read_from_the_engines_message() {
        let text =
            "\n--> policies/a:b.rego:3:7\n  |\n3 | allow {\n  |       ^\nerror: expecting `if`.";
        let remark = Remark::from_engine("x", text);
        assert_eq!(remark.file, "policies/a:b.rego");
        assert_eq!((remark.line, remark.column), (Some(3), Some(7)));
        assert_eq!(remark.message, "expecting `if`");
    }

    #[test]
    fn a_message_without_a_position_names_the_file_at_hand() {
        let remark = Remark::from_engine("x.rego", "not a valid rule path");
        assert_eq!((remark.file.as_str(), remark.line), ("x.rego", None));
    }
}
