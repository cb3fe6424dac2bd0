//! Deviations of clients, and the fix for each. The tests check the facts; the texts go into the
//! document.

use crate::case::Case;
use crate::client::Client;

pub struct Deviation {
    /// The titles of the client, and of its variants with the same deviation.
    pub clients: &'static [&'static str],
    pub case: Case,
    /// The outcome that the test expects instead of `ok`.
    pub seen: &'static str,
    /// The cell in the table.
    pub cell: &'static str,
    /// The explanation and the fix, for the section of the client.
    pub text: &'static str,
}

pub fn of(client: &Client, case: Case) -> Option<&'static Deviation> {
    let title = client.title();
    DEVIATIONS.iter().find(|deviation| deviation.case == case && deviation.clients.contains(&&title[..]))
}

const FETCH: &str = "@microsoft/fetch-event-source";
const FETCH_CALLBACKS: &str = "@microsoft/fetch-event-source, with callbacks";
const AIOHTTP: &str = "aiohttp-sse-client";
const AIOHTTP_LOOP: &str = "aiohttp-sse-client, in a loop";
const LAUNCHDARKLY: &str = "eventsource-client";
const LAUNCHDARKLY_STATUS: &str = "eventsource-client, checking the status";

pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        clients: &["undici"],
        case: Case::Unauthorized,
        seen: "asks twice",
        cell: "repeats once",
        text: "The client repeats the request once before it gives up. No action is needed. The access hook is called twice.",
    },
    Deviation {
        clients: &["eventsource-parser"],
        case: Case::Ids,
        seen: r#"has the id """#,
        cell: "none",
        text: "An event without an id has none. Keep the last id that is not `undefined`, and send it when you reconnect.",
    },
    Deviation {
        clients: &[FETCH, FETCH_CALLBACKS],
        case: Case::Lines,
        seen: r#""the first is empty" for "\nthe first is empty""#,
        cell: "loses leading empty lines",
        text: "The client loses line breaks at the start of data. Send JSON (`Event::json`), which has none there.",
    },
    Deviation {
        clients: &[FETCH, FETCH_CALLBACKS],
        case: Case::Bom,
        seen: r#""marked" for "\u{feff}marked""#,
        cell: "loses it",
        text: "The client loses U+FEFF at the start of a line of data. Send JSON.",
    },
    Deviation {
        clients: &[FETCH, FETCH_CALLBACKS],
        case: Case::Ids,
        seen: r#"has the id """#,
        cell: "none",
        text: "An event without an id has an empty id. The client still reconnects with the right id. If your code needs the id, \
               keep the last id that is not empty.",
    },
    Deviation {
        clients: &[FETCH],
        case: Case::Clean,
        seen: "gives up: took the end for the end",
        cell: "stops",
        text: "The client does not reconnect after a clean end. Throw in `onclose`, or set \
               `HubBuilder::stream_end(StreamEnd::Abort)`, as for the other columns here. `Subscription::stream_end` applies to \
               its streams only, not to `hub.refused`.",
    },
    Deviation {
        clients: &[FETCH],
        case: Case::Unauthorized,
        seen: "asks again and again",
        cell: "keeps retrying",
        text: "The client repeats the request without end. Throw in `onopen`, and rethrow the error in `onerror`.",
    },
    Deviation {
        clients: &[FETCH],
        case: Case::Never,
        seen: "asks again",
        cell: "keeps retrying",
        text: "The client repeats the request after `retry`. The fix is the same as for `401`. `response.ok` is true for `204`, so \
               compare the status with 200.",
    },
    Deviation {
        clients: &["sseclient-py"],
        case: Case::Ids,
        seen: r#"has the id """#,
        cell: "none",
        text: "An event without an id has `None`. Keep the last id that is not `None`, and send it when you reconnect.",
    },
    Deviation {
        clients: &[AIOHTTP, AIOHTTP_LOOP],
        case: Case::Lines,
        seen: r#""the last is empty" for "the last is empty\n""#,
        cell: "loses trailing empty lines",
        text: "The client loses line breaks at the end of data. Send JSON.",
    },
    Deviation {
        clients: &[AIOHTTP, AIOHTTP_LOOP],
        case: Case::Spaces,
        seen: r#""one" for " one""#,
        cell: "loses leading spaces",
        text: "The client loses spaces at the start of a line of data. Send JSON.",
    },
    Deviation {
        clients: &[AIOHTTP],
        case: Case::Resume,
        seen: "gives up: ClientPayloadError: Response payload is not completed: <TransferEncodingError: 400, \
               message='Not enough data to satisfy transfer length header.'>",
        cell: "raises",
        text: "The client reconnects only after a clean end. When the connection breaks, the loop over events ends with \
               `aiohttp.ClientPayloadError`. Put it into a loop of your own, and open the next stream with the header \
               `Last-Event-ID` of the last event.",
    },
    Deviation {
        clients: &[AIOHTTP],
        case: Case::Aborted,
        seen: "gives up: ClientPayloadError: Response payload is not completed: <TransferEncodingError: 400, \
               message='Not enough data to satisfy transfer length header.'>",
        cell: "raises",
        text: "The same. Leave a hub for such clients at `StreamEnd::Clean`.",
    },
    Deviation {
        clients: &[AIOHTTP],
        case: Case::Retry,
        seen: "comes back later",
        cell: "twice as long",
        text: "The client waits twice as long as `retry`. Set `HubBuilder::retry` to half of the time that you want, or accept it.",
    },
    Deviation {
        clients: &[AIOHTTP_LOOP],
        case: Case::Retry,
        seen: "comes back later",
        cell: "unknown",
        text: "Its events do not have the value of `retry`. The loop around the client has to choose a time. A random time spreads \
               the reconnects.",
    },
    Deviation {
        clients: &[LAUNCHDARKLY, LAUNCHDARKLY_STATUS],
        case: Case::Retry,
        seen: "comes back earlier",
        cell: "at least half",
        text: "The client waits for a random time between half of `retry` and the whole. No action is needed.",
    },
    Deviation {
        clients: &[LAUNCHDARKLY],
        case: Case::Never,
        seen: "asks again",
        cell: "keeps retrying",
        text: "The client treats `204` as a stream that ended. Check the status in `SSE::Connected`, and drop the stream if it is not \
               200.",
    },
];
