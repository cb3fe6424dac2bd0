//! The error of describing the events.

use std::error::Error;
use std::fmt;
#[cfg(feature = "typescript")]
use std::{io, path::PathBuf};

/// The error of describing the events of an application: of `TypeScript` and `StreamSchema`.
///
/// Its text lists everything that is wrong, one problem on each line.
///
/// ```
/// # #[cfg(all(feature = "derive", feature = "typescript"))] {
/// use tower_sse::{Message, TypeScript};
/// use ts_rs::TS;
///
/// #[derive(serde::Serialize, Message, TS)]
/// #[message(event = "document.deleted")]
/// struct DocumentDeleted { id: u64 }
///
/// let error = TypeScript::new().message::<DocumentDeleted>().to_typescript().unwrap_err();
/// assert!(error.is_invalid());
/// assert!(error.to_string().contains("`DocumentDeleted`, field `id`"), "{error}");
/// # }
/// ```
#[derive(Debug)]
pub struct DescribeError(Kind);

#[derive(Debug)]
enum Kind {
    Invalid(Vec<String>),
    #[cfg(feature = "typescript")]
    Outdated {
        path: PathBuf,
        line: usize,
    },
    #[cfg(feature = "typescript")]
    File {
        path: PathBuf,
        cause: io::Error,
    },
}

impl DescribeError {
    /// Returns the error of these problems, or `Ok` if there are none.
    pub(super) fn of(problems: &[String]) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(Kind::Invalid(problems.to_vec()))) }
    }

    #[cfg(feature = "typescript")]
    pub(super) fn outdated(path: PathBuf, line: usize) -> Self {
        Self(Kind::Outdated { path, line })
    }

    #[cfg(feature = "typescript")]
    pub(super) fn file(path: PathBuf, cause: io::Error) -> Self {
        Self(Kind::File { path, cause })
    }

    /// Returns whether the description would be wrong: an integer is too large for JavaScript, two
    /// types have the same event or the same name, or the description of an enum has another form
    /// than its data.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Invalid(_))
    }

    /// Returns whether a file does not have the generated text. If the file cannot be read, for
    /// example because it does not exist, the error is of the file instead: its
    /// [`source`](Error::source) is the [`std::io::Error`].
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        #[cfg(feature = "typescript")]
        return matches!(self.0, Kind::Outdated { .. });
        #[cfg(not(feature = "typescript"))]
        false
    }
}

impl fmt::Display for DescribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Invalid(problems) => f.write_str(&problems.join("\n")),
            #[cfg(feature = "typescript")]
            Kind::Outdated { path, line } => {
                write!(f, "{} is outdated from line {line} on: generate it again with `write`", path.display())
            }
            #[cfg(feature = "typescript")]
            Kind::File { path, cause } => write!(f, "{}: {cause}", path.display()),
        }
    }
}

impl Error for DescribeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Invalid(_) => None,
            #[cfg(feature = "typescript")]
            Kind::Outdated { .. } => None,
            #[cfg(feature = "typescript")]
            Kind::File { cause, .. } => Some(cause),
        }
    }
}
