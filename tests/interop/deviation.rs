//! What clients do otherwise, and what to do about it. The facts are tested; the words go into the document.

use crate::case::Case;
use crate::client::Client;

pub struct Deviation {
    /// A client, and those of its variants that do it too.
    pub clients: &'static [&'static str],
    pub case: Case,
    /// What the test must see, instead of `ok`.
    pub seen: &'static str,
    /// In the table.
    pub cell: &'static str,
    /// In the text: what it is, and what to do.
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
const LAUNCHDARKLY_STATUS: &str = "eventsource-client, minding the status";

pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        clients: &["undici"],
        case: Case::Unauthorized,
        seen: "asks twice",
        cell: "asks twice",
        text: "It sends the request once more, at once, before it gives up. Nothing is to be done; the access hook is asked \
               twice.",
    },
    Deviation {
        clients: &["eventsource-parser"],
        case: Case::Ids,
        seen: r#"has the id """#,
        cell: "none",
        text: "An event without an id has none. Keep the last one that is not `undefined`, and send that when you return.",
    },
    Deviation {
        clients: &[FETCH, FETCH_CALLBACKS],
        case: Case::Lines,
        seen: r#""the first is empty" for "\nthe first is empty""#,
        cell: "loses empty first lines",
        text: "Line breaks at the beginning of data are lost. Send JSON (`Event::json`), which has none there.",
    },
    Deviation {
        clients: &[FETCH, FETCH_CALLBACKS],
        case: Case::Bom,
        seen: r#""marked" for "\u{feff}marked""#,
        cell: "loses it",
        text: "U+FEFF at the beginning of a line of data is lost. Send JSON.",
    },
    Deviation {
        clients: &[FETCH, FETCH_CALLBACKS],
        case: Case::Ids,
        seen: r#"has the id """#,
        cell: "none",
        text: "An event without an id has an empty one. It returns with the right one all the same; who needs it elsewhere keeps \
               the last that is not empty.",
    },
    Deviation {
        clients: &[FETCH],
        case: Case::Clean,
        seen: "gives up: took the end for the end",
        cell: "stops",
        text: "A proper end is the end: it does not come back. Throw in `onclose`, or let the hub end its streams with an error, \
               `HubBuilder::stream_end(StreamEnd::Abort)`, as for the other columns here. `Subscription::stream_end` does that for its streams only, \
               not for `hub.refused`.",
    },
    Deviation {
        clients: &[FETCH],
        case: Case::Unauthorized,
        seen: "asks again and again",
        cell: "asks for ever",
        text: "It asks again and again. Throw in `onopen`, and throw the same again in `onerror`.",
    },
    Deviation {
        clients: &[FETCH],
        case: Case::Never,
        seen: "asks again",
        cell: "asks for ever",
        text: "It asks again after `retry`. As for `401`; mind that `response.ok` is true for `204`, so compare with 200.",
    },
    Deviation {
        clients: &["sseclient-py"],
        case: Case::Ids,
        seen: r#"has the id """#,
        cell: "none",
        text: "An event without an id has `None`. Keep the last one that is not, and send that when you return.",
    },
    Deviation {
        clients: &[AIOHTTP, AIOHTTP_LOOP],
        case: Case::Lines,
        seen: r#""the last is empty" for "the last is empty\n""#,
        cell: "loses empty last lines",
        text: "Line breaks at the end of data are lost. Send JSON.",
    },
    Deviation {
        clients: &[AIOHTTP, AIOHTTP_LOOP],
        case: Case::Spaces,
        seen: r#""one" for " one""#,
        cell: "loses the first ones",
        text: "Spaces at the beginning of a line of data are lost. Send JSON.",
    },
    Deviation {
        clients: &[AIOHTTP],
        case: Case::Resume,
        seen: "gives up: ClientPayloadError: Response payload is not completed: <TransferEncodingError: 400, \
               message='Not enough data to satisfy transfer length header.'>",
        cell: "raises",
        text: "It comes back after a proper end only. Where the connection breaks, the loop over events ends with \
               `aiohttp.ClientPayloadError`. Put it into a loop of your own, and open the next one with the header \
               `Last-Event-ID` of the last event.",
    },
    Deviation {
        clients: &[AIOHTTP],
        case: Case::Aborted,
        seen: "gives up: ClientPayloadError: Response payload is not completed: <TransferEncodingError: 400, \
               message='Not enough data to satisfy transfer length header.'>",
        cell: "raises",
        text: "The same. A hub for such clients is left at `StreamEnd::Clean`.",
    },
    Deviation {
        clients: &[AIOHTTP],
        case: Case::Retry,
        seen: "comes back later",
        cell: "twice as long",
        text: "It waits twice as long as `retry` says. Set half of what you want (`HubBuilder::retry`), or live with it.",
    },
    Deviation {
        clients: &[AIOHTTP_LOOP],
        case: Case::Retry,
        seen: "comes back later",
        cell: "not told",
        text: "Its events do not say what `retry` was: a loop around it waits as long as it likes, at random to spare the server.",
    },
    Deviation {
        clients: &[LAUNCHDARKLY, LAUNCHDARKLY_STATUS],
        case: Case::Retry,
        seen: "comes back earlier",
        cell: "half at least",
        text: "It waits for a random time between half of `retry` and the whole of it. Nothing is to be done.",
    },
    Deviation {
        clients: &[LAUNCHDARKLY],
        case: Case::Never,
        seen: "asks again",
        cell: "asks for ever",
        text: "It takes `204` for a stream that ended. Look at the status in `SSE::Connected`, and drop the stream if it is not 200.",
    },
];
