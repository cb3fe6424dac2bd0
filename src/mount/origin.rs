//! The hosts and origins that may ask. A browser sends the cookies of a site also when the page of another one asks,
//! and lets that page read the answer where a CORS layer is generous. So this is judged here too,
//! before anybody looks at a cookie.

use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Uri};

use super::StreamRequest;
use crate::hub::{Hosts, Hub, Origins};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Hub {
    /// Checks that a request names a host of this hub, and comes from a page that may ask. An error is the text of the
    /// `403`.
    pub(super) fn may_ask(&self, request: &StreamRequest) -> Result<(), &'static str> {
        let (settings, uri, headers) = (self.settings(), request.uri(), request.headers());
        if !names_own_host(&settings.hosts, uri, headers) {
            self.counters().host_refused(headers.get(HOST), self.now());
            return Err("this host is not allowed\n");
        }
        if !is_allowed(&settings.origins, uri, headers) {
            self.counters().origin_refused(headers.get(ORIGIN), self.now());
            return Err("the origin of this page is not allowed\n");
        }
        Ok(())
    }
}

/// Whether every host that a request names is on the list, if there is one.
fn names_own_host(hosts: &Hosts, uri: &Uri, headers: &HeaderMap) -> bool {
    if hosts.is_empty() {
        return true;
    }
    let named = headers.get_all(HOST).iter().map(http::HeaderValue::as_bytes);
    let mut named = named.chain(uri.authority().map(|authority| authority.as_str().as_bytes())).peekable();
    named.peek().is_some() && named.all(|host| hosts.lists(host))
}

/// Whether the page that asks may. Clients that are no browsers send none of the headers, and are not judged.
fn is_allowed(origins: &Origins, uri: &Uri, headers: &HeaderMap) -> bool {
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

    #[test]
    fn a_request_that_names_another_host_is_refused_before_the_hook_is_asked() {
        use crate::{Refusal, Subscription};
        use futures::executor::block_on;
        use tower::ServiceExt;

        let hub = Hub::builder().allow_host("app.example").allow_host("localhost:3000").build().unwrap();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let asked = std::sync::Arc::new(asked);
        let count = std::sync::Arc::clone(&asked);
        let access = move |_: StreamRequest| {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::future::ready(Ok::<_, Refusal>(Subscription::anonymous()))
        };
        let endpoint = hub.endpoint(access).allow_topic_changes();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let status = |method: &str, target: &str, hosts: &[&str]| {
            let request = Request::builder().method(method).uri(target);
            let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
            // A page of the attacker's site, to which the browser says that it asks its own.
            let request = request.header("sec-fetch-site", "same-origin").body(()).unwrap();
            let asked = hub.respond(StreamRequest::from_request(&request), Subscription::anonymous()).into_response();
            let answered = block_on(endpoint.clone().oneshot(request)).unwrap();
            if method == "GET" {
                assert_eq!(answered.status(), asked.status(), "a handler obeys the same rule");
            }
            answered.status().as_u16()
        };
        let path = "/events";
        for (target, hosts) in [
            (path, &["app.example"][..]),
            (path, &["APP.example:8443"]),
            (path, &["localhost:3000"]),
            ("https://app.example/events", &[]),
            ("https://app.example/events", &["app.example"]),
        ] {
            assert_eq!(status("GET", target, hosts), 200, "{target} {hosts:?}");
        }
        let before = asked.load(std::sync::atomic::Ordering::SeqCst);
        for (target, hosts) in [
            (path, &["evil.test"][..]),
            (path, &["evil.test:3000"]),
            (path, &["localhost"]),
            (path, &[]),
            (path, &["app.example", "evil.test"]),
            ("https://evil.test/events", &[]),
            ("https://evil.test/events", &["app.example"]),
            ("https://app.example/events", &["evil.test"]),
        ] {
            assert_eq!(status("GET", target, hosts), 403, "{target} {hosts:?}");
            assert_eq!(status("HEAD", target, hosts), 403, "{target} {hosts:?}");
        }
        assert_eq!(status("POST", "/events/0/topics", &["evil.test"]), 403);
        assert_eq!(status("POST", "/events/0/topics", &["app.example"]), 404);
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), before);
    }
}
