//! Checks of the host and the origin of a request.
//!
//! A browser may send the cookies of a site also with requests from pages of other sites, and a
//! permissive CORS layer lets these pages read the responses. So the hub checks the origin itself,
//! before it calls the access hook.

use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Uri};

use super::StreamRequest;
use crate::hub::{Hosts, Hub, Origins};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Hub {
    /// Returns whether [`check_host_and_origin`](Self::check_host_and_origin) accepts a request,
    /// without the warnings and counts of a refusal.
    pub(super) fn allows_site(&self, request: &StreamRequest) -> bool {
        let (settings, uri, headers) = (self.settings(), request.uri(), request.headers());
        names_allowed_host(&settings.hosts, uri, headers) && is_allowed(&settings.origins, uri, headers)
    }

    /// Checks that a request names an allowed host and comes from an allowed origin. Returns the
    /// text of the `403` response as an error.
    pub(super) fn check_host_and_origin(&self, request: &StreamRequest) -> Result<(), &'static str> {
        let (settings, uri, headers) = (self.settings(), request.uri(), request.headers());
        if !names_allowed_host(&settings.hosts, uri, headers) {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let host = host.or(uri.authority().map(http::uri::Authority::as_str));
            self.counters().host_refused(host, self.now());
            return Err("this host is not allowed\n");
        }
        if !is_allowed(&settings.origins, uri, headers) {
            self.counters().origin_refused(headers.get(ORIGIN), self.now());
            return Err("the origin of this page is not allowed\n");
        }
        Ok(())
    }
}

/// Returns whether a request names a host, and every host that it names is on the list. An empty
/// list allows every request.
fn names_allowed_host(hosts: &Hosts, uri: &Uri, headers: &HeaderMap) -> bool {
    if hosts.is_empty() {
        return true;
    }
    let named = headers.get_all(HOST).iter().map(http::HeaderValue::as_bytes);
    let mut named = named.chain(uri.authority().map(|authority| authority.as_str().as_bytes())).peekable();
    named.peek().is_some() && named.all(|host| hosts.lists(host))
}

/// Returns whether a request comes from an allowed origin. A request with neither `Origin` nor
/// `Sec-Fetch-Site` is allowed, because most clients other than browsers send neither header.
fn is_allowed(origins: &Origins, uri: &Uri, headers: &HeaderMap) -> bool {
    let Origins::Listed(listed) = origins else { return true };
    let origin = headers.get(ORIGIN);
    let is_listed = origin.is_some_and(|origin| listed.iter().any(|listed| listed.as_bytes() == origin.as_bytes()));
    let own = match headers.get(SEC_FETCH_SITE).map(http::HeaderValue::as_bytes) {
        // The browser sends `none` if the user entered the address.
        Some(b"same-origin" | b"none") => true,
        // Includes `same-site`: a different party may control another host of the site.
        Some(_) => false,
        // An old browser, or a client that is not a browser.
        None => origin.is_none_or(|origin| is_own(origin.as_bytes(), uri, headers)),
    };
    own || is_listed
}

/// Returns whether an origin has the host and port that the request names. The scheme may differ,
/// because a proxy may terminate TLS.
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
    fn origin_is_allowed_when_it_is_own_or_listed() {
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
            // Unknown values of `Sec-Fetch-Site` are refused.
            (&[("sec-fetch-site", "something-new")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://api.example")], false),
            // Old browsers, which do not send `Sec-Fetch-Site`.
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
    fn origin_is_compared_with_the_authority_when_http_2_has_no_host_header() {
        let request = Request::get("https://api.example/events").header("origin", "https://api.example");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert!(is_allowed(&Origins::Listed(Vec::new()), &parts.uri, &parts.headers));
    }

    #[test]
    fn request_is_refused_before_the_hook_when_it_names_another_host() {
        use crate::{Refusal, Subscription};
        use futures::executor::block_on;
        use tower::ServiceExt;

        let hub = Hub::builder().allow_host("app.example").allow_host("localhost:3000").build().unwrap();
        let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&calls);
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
            // With DNS rebinding, the browser marks the request of an attacker's page as
            // same-origin.
            let request = request.header("sec-fetch-site", "same-origin").body(()).unwrap();
            let by_handler =
                hub.respond(StreamRequest::from_request(&request), Subscription::anonymous()).into_response();
            let by_endpoint = block_on(endpoint.clone().oneshot(request)).unwrap();
            if method == "GET" {
                assert_eq!(by_handler.status(), by_endpoint.status());
            }
            by_endpoint.status().as_u16()
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
        let before = calls.load(std::sync::atomic::Ordering::SeqCst);
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
        assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), before);
    }
}
