//! Which sites' pages may open streams.

/// Whose pages may open streams beside the site's own.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    Any,
    /// As browsers write them: `https://app.example`.
    Listed(Vec<Box<str>>),
}

impl Origins {
    /// Whether all that are listed are what a browser would send.
    pub(super) fn are_origins(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(origins) => origins.iter().all(|origin| is_origin(origin)),
        }
    }
}

/// What a browser would send as `Origin`. `null` is none: every sandboxed page of any site has it.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    let is_default =
        (scheme == "http" && authority.ends_with(":80")) || (scheme == "https" && authority.ends_with(":443"));
    ["http", "https"].contains(&scheme) && !authority.is_empty() && authority.chars().all(is_plain) && !is_default
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for origin in
            ["https://app.example", "http://localhost:3000", "https://[::1]:8443", "https://xn--e1afmkfd.example"]
        {
            assert!(Origins::Listed(vec![origin.into()]).are_origins(), "{origin}");
        }
        for origin in [
            "",
            "null",
            "*",
            "app.example",
            "https://",
            "https://App.example",
            "https://a/",
            "https://a:443",
            "ftp://a",
        ] {
            assert!(!Origins::Listed(vec!["https://app.example".into(), origin.into()]).are_origins(), "{origin}");
        }
    }
}
