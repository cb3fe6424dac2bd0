//! Whose pages may ask. A browser sends the cookies of a site also when the page of another one asks, and lets that page
//! read the answer where a CORS layer is generous. So this is judged here too, before anybody looks at a cookie.

use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Uri};

use crate::hub::Origins;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether the page that asks may. Clients that are no browsers send none of the headers, and are not judged.
pub(super) fn is_allowed(origins: &Origins, uri: &Uri, headers: &HeaderMap) -> bool {
    let Origins::Listed(listed) = origins else { return true };
    let origin = headers.get(ORIGIN);
    let is_listed = origin.is_some_and(|origin| listed.iter().any(|listed| listed.as_bytes() == origin.as_bytes()));
    let own = match headers.get(SEC_FETCH_SITE).map(http::HeaderValue::as_bytes) {
        // The browser knows. `none` is a person who typed the address.
        Some(b"same-origin" | b"none") => true,
        // `same-site` too: another host of the site may be somebody else's.
        Some(_) => false,
        // An old browser, or none.
        None => origin.is_none_or(|origin| is_own(origin.as_bytes(), uri, headers)),
    };
    own || is_listed
}

/// Whether an origin is where the request went, but for the scheme, which a proxy may have changed.
fn is_own(origin: &[u8], uri: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).map(http::HeaderValue::as_bytes);
    let host = host.or_else(|| uri.authority().map(|authority| authority.as_str().as_bytes()));
    let authority = [&b"https://"[..], b"http://"].into_iter().find_map(|scheme| origin.strip_prefix(scheme));
    matches!((authority, host), (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LISTED: &str = "https://app.example";

    fn allowed(origins: &Origins, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::get("/events").header("host", "api.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        is_allowed(origins, &parts.uri, &parts.headers)
    }

    #[test]
    fn the_own_pages_and_those_of_the_list_may_and_others_may_not() {
        let listed = Origins::Listed(vec![LISTED.into()]);
        for (headers, expected) in [
            (&[][..], true),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://api.example")], true),
            (&[("sec-fetch-site", "same-site"), ("origin", "https://evil.example")], false),
            (&[("sec-fetch-site", "same-site"), ("origin", LISTED)], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://evil.test")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", LISTED)], true),
            // Whatever the browser does not say is not trusted.
            (&[("sec-fetch-site", "something-new")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://api.example")], false),
            // Browsers that do not send it.
            (&[("origin", "https://api.example")], true),
            (&[("origin", "http://API.example")], true),
            (&[("origin", "https://api.example:8443")], false),
            (&[("origin", "https://app.example.evil.test")], false),
            (&[("origin", LISTED)], true),
            (&[("origin", "null")], false),
            (&[("origin", "")], false),
        ] {
            assert_eq!(allowed(&listed, headers), expected, "{headers:?}");
            assert!(allowed(&Origins::Any, headers));
        }
    }

    #[test]
    fn over_http_2_the_host_is_in_the_target() {
        let request = Request::get("https://api.example/events").header("origin", "https://api.example");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert!(is_allowed(&Origins::Listed(Vec::new()), &parts.uri, &parts.headers));
    }
}
