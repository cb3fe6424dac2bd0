//! Checks of the method and of the `Accept` header.

use http::header::ACCEPT;
use http::{HeaderMap, Method, StatusCode};

/// Checks whether the response to a request can be an event stream. Returns the status of the
/// refusal as an error.
pub(super) fn check(method: &Method, headers: &HeaderMap) -> Result<(), StatusCode> {
    if method != Method::GET && method != Method::HEAD {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut values = headers.get_all(ACCEPT).iter().peekable();
    match values.peek().map(|value| value.as_bytes()) {
        None => return Ok(()),
        // A fast path for the values of `EventSource` and of scripts.
        Some(b"text/event-stream" | b"*/*") if headers.get_all(ACCEPT).iter().nth(1).is_none() => return Ok(()),
        Some(_) => {}
    }
    // A header value that is not ASCII text counts as `*/*`, so that it excludes no type.
    let ranges = values.flat_map(|value| value.to_str().unwrap_or("*/*").split(','));
    if accepts_event_streams(ranges) { Ok(()) } else { Err(StatusCode::NOT_ACCEPTABLE) }
}

/// Returns whether a request seems to come from a browser's `EventSource`: a `GET` whose `Accept`
/// header names event streams.
pub(super) fn is_event_source(method: &Method, headers: &HeaderMap) -> bool {
    let names_streams = |value: &http::HeaderValue| {
        value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("text/event-stream"))
    };
    method == Method::GET && headers.get_all(ACCEPT).iter().any(names_streams)
}

/// Returns whether the ranges of an `Accept` header include event streams.
///
/// The most specific range that matches decides, as in RFC 9110. Among equally specific ranges, a
/// range with a quality above zero wins.
fn accepts_event_streams<'a>(ranges: impl Iterator<Item = &'a str>) -> bool {
    let mut best: Option<(usize, bool)> = None;
    let mut any = false;
    for range in ranges.map(str::trim).filter(|range| !range.is_empty()) {
        any = true;
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let known = ["*/*", "text/*", "text/event-stream"];
        let Some(specificity) = known.iter().position(|known| name.eq_ignore_ascii_case(known)) else { continue };
        let is_zero = |q: &str| q.parse().is_ok_and(|q: f32| q <= 0.0);
        let refused = parts.any(|part| {
            part.split_once('=').is_some_and(|(name, value)| name.eq_ignore_ascii_case("q") && is_zero(value))
        });
        best = best.max(Some((specificity, !refused)));
    }
    !any || best.is_some_and(|(_, is_included)| is_included)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn accept(value: &'static str) -> Result<(), StatusCode> {
        check(&Method::GET, &HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]))
    }

    #[test]
    fn accept_allows_event_streams_when_a_range_includes_them() {
        assert_eq!(check(&Method::GET, &HeaderMap::new()), Ok(()));
        for value in [
            "",
            "*/*",
            "text/*",
            "text/event-stream",
            "TEXT/Event-Stream",
            "application/json, */*;q=0.1",
            "text/html,text/event-stream;q=0.5",
        ] {
            assert_eq!(accept(value), Ok(()), "{value}");
        }
    }

    #[test]
    fn accept_refuses_event_streams_when_no_range_includes_them() {
        for value in [
            "application/json",
            "text/html",
            "text/event-stream;q=0",
            "text/event-stream;Q=0",
            "*/*, text/event-stream; q=0.0",
            "text/*;q=0, */*",
        ] {
            assert_eq!(accept(value), Err(StatusCode::NOT_ACCEPTABLE), "{value}");
        }
    }

    #[test]
    fn method_is_refused_when_it_is_neither_get_nor_head() {
        assert_eq!(check(&Method::HEAD, &HeaderMap::new()), Ok(()));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
            assert_eq!(check(&method, &HeaderMap::new()), Err(StatusCode::METHOD_NOT_ALLOWED));
        }
    }
}
