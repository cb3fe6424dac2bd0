//! Whether a request can be answered with an event stream at all.

use http::header::ACCEPT;
use http::{HeaderMap, Method, StatusCode};

/// Returns the status of the refusal if the request cannot be answered with an event stream.
pub(super) fn check(method: &Method, headers: &HeaderMap) -> Result<(), StatusCode> {
    if method != Method::GET && method != Method::HEAD {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut values = headers.get_all(ACCEPT).iter().peekable();
    match values.peek().map(|value| value.as_bytes()) {
        None => return Ok(()),
        // What `EventSource` and scripts send.
        Some(b"text/event-stream" | b"*/*") if headers.get_all(ACCEPT).iter().nth(1).is_none() => return Ok(()),
        Some(_) => {}
    }
    // Bytes that are no text cannot name another type.
    let ranges = values.flat_map(|value| value.to_str().unwrap_or("*/*").split(','));
    if accepts_event_streams(ranges) { Ok(()) } else { Err(StatusCode::NOT_ACCEPTABLE) }
}

/// By the most specific range that matches, as RFC 9110 has it; of equals the most willing.
fn accepts_event_streams<'a>(ranges: impl Iterator<Item = &'a str>) -> bool {
    let mut best: Option<(usize, bool)> = None;
    let mut any = false;
    for range in ranges.map(str::trim).filter(|range| !range.is_empty()) {
        any = true;
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let known = ["*/*", "text/*", "text/event-stream"];
        let Some(specificity) = known.iter().position(|known| name.eq_ignore_ascii_case(known)) else { continue };
        let refused = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse().is_ok_and(|q: f32| q <= 0.0)));
        best = best.max(Some((specificity, !refused)));
    }
    !any || best.is_some_and(|(_, willing)| willing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn accept(value: &'static str) -> Result<(), StatusCode> {
        check(&Method::GET, &HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]))
    }

    #[test]
    fn anything_that_admits_an_event_stream_will_do() {
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
    fn what_excludes_it_will_not() {
        for value in [
            "application/json",
            "text/html",
            "text/event-stream;q=0",
            "*/*, text/event-stream; q=0.0",
            "text/*;q=0, */*",
        ] {
            assert_eq!(accept(value), Err(StatusCode::NOT_ACCEPTABLE), "{value}");
        }
    }

    #[test]
    fn only_get_and_head() {
        assert_eq!(check(&Method::HEAD, &HeaderMap::new()), Ok(()));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
            assert_eq!(check(&method, &HeaderMap::new()), Err(StatusCode::METHOD_NOT_ALLOWED));
        }
    }
}
