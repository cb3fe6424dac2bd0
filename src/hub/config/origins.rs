//! The allowed origins of pages, and the allowed host names of requests.

/// The origins, besides the hub's own, whose pages may open streams.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    /// Every origin.
    Any,
    /// These origins, as browsers write them: `https://app.example`.
    Listed(Vec<Box<str>>),
}

impl Origins {
    /// Returns whether a browser could send every listed origin.
    pub(in crate::hub) fn are_origins(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(origins) => origins.iter().all(|origin| is_origin(origin)),
        }
    }
}

/// Returns whether a browser, or an application's web view, could send this text as `Origin`: a
/// scheme and an authority, in lower case and without the default port of the scheme. `null` is
/// rejected, because every sandboxed page of any site sends it.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_of_scheme = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let is_default =
        (scheme == "http" && authority.ends_with(":80")) || (scheme == "https" && authority.ends_with(":443"));
    scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(is_of_scheme)
        && is_authority(authority)
        && !is_default
}

fn is_authority(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    !text.is_empty() && text.chars().all(is_plain)
}

/// The host names that requests may use. If the list is empty, every name is allowed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Vec<Box<str>>);

impl Hosts {
    pub(in crate::hub) fn add(&mut self, host: Box<str>) {
        self.0.push(host);
    }

    pub(in crate::hub) fn are_hosts(&self) -> bool {
        self.0.iter().all(|host| is_authority(host) && !without_port(host.as_bytes()).is_empty())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the value of a `Host` header or an `:authority` is on the list. A name that
    /// is listed without a port matches every port.
    pub(crate) fn lists(&self, host: &[u8]) -> bool {
        self.0.iter().any(|listed| {
            let listed = listed.as_bytes();
            listed.eq_ignore_ascii_case(host) || listed.eq_ignore_ascii_case(without_port(host))
        })
    }
}

/// Removes the port of a host. An IPv6 address keeps its brackets.
fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|&byte| byte == b':') {
        Some(colon) if host[colon + 1..].iter().all(u8::is_ascii_digit) => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_valid_only_as_browsers_write_it() {
        for origin in [
            "https://app.example",
            "http://localhost:3000",
            "https://[::1]:8443",
            "https://xn--e1afmkfd.example",
            "capacitor://localhost",
            "tauri://localhost",
            "ionic://localhost",
            "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
            "moz-extension://12345678-9abc-def0-1234-56789abcdef0",
            "web+app://a",
        ] {
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
            "http://a:80",
            "://a",
            "1a://a",
            "Capacitor://localhost",
            "https://user@a",
            "https://a?b",
            "file://",
        ] {
            assert!(!Origins::Listed(vec!["https://app.example".into(), origin.into()]).are_origins(), "{origin}");
        }
    }

    #[test]
    fn host_without_a_port_matches_every_port() {
        let mut hosts = Hosts::default();
        for host in ["app.example", "localhost:3000", "[::1]"] {
            hosts.add(host.into());
        }
        assert!(hosts.are_hosts());
        for host in ["app.example", "App.Example", "app.example:8443", "localhost:3000", "[::1]", "[::1]:80"] {
            assert!(hosts.lists(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.test",
            "app.example.evil.test",
            "evil.test:app.example",
            "app.example:x",
            "app.example.",
            "localhost",
            "localhost:3001",
            "user@app.example",
            "::1",
        ] {
            assert!(!hosts.lists(host.as_bytes()), "{host}");
        }
        for host in ["", ":80", "https://app.example", "App.example", "a/b", "*.example"] {
            let mut hosts = Hosts::default();
            hosts.add(host.into());
            assert!(!hosts.are_hosts(), "{host}");
        }
    }
}
