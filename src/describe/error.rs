//! The error of `TypeScript` and `StreamSchema`.

use std::error::Error;
use std::fmt;
#[cfg(feature = "typescript")]
use std::{io, path::PathBuf};

/// The error of `TypeScript` and `StreamSchema`.
///
/// Its text lists all problems, one on each line. `Debug` writes the same text, so that a test that
/// returns this error, or unwraps it, shows the problems as lines.
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
pub struct DescribeError(Kind);

enum Kind {
    Invalid(Vec<String>),
    #[cfg(feature = "typescript")]
    Outdated {
        path: PathBuf,
        line: usize,
        is_written: bool,
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
    pub(super) fn outdated(path: PathBuf, line: usize, is_written: bool) -> Self {
        Self(Kind::Outdated { path, line, is_written })
    }

    #[cfg(feature = "typescript")]
    pub(super) fn file(path: PathBuf, cause: io::Error) -> Self {
        Self(Kind::File { path, cause })
    }

    /// Returns whether the description would be wrong. The errors of `TypeScript` and of
    /// `StreamSchema` list the causes.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Invalid(_))
    }

    /// Returns whether a file did not have the generated text. After `TypeScript::update`, it has
    /// the text. If a file cannot be read or written, this is false, and
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
            Kind::Outdated { path, line, is_written } => {
                let (path, now) = (path.display(), if *is_written { ", and has been written" } else { "" });
                write!(f, "{path} was outdated from line {line} on{now}")
            }
            #[cfg(feature = "typescript")]
            Kind::File { path, cause } => write!(f, "{}: {cause}", path.display()),
        }
    }
}

impl fmt::Debug for DescribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
