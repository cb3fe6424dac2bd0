//! The expected outcomes. The tests check them, and the document has its tables from them.

use super::{Case, Client};

/// What a client does in each case, in the order of [`Case::ALL`].
///
/// - `whole`: the client delivers the whole text, and reports success.
/// - `half`: the client delivers half of the text, and reports success.
/// - `error`: the client delivers a part of the text at most, and reports an error.
/// - `resumes`: as `whole`, with another request.
/// - `nothing`: the client learns that nothing is active.
/// - `none`: the protocol of the client has no such request.
/// - `repeats`: the client repeats its request without end.
const EXPECTED: &[(&str, [&str; 10])] = &[
    ("`ai`", ["whole", "error", "error", "error", "whole", "nothing", "error", "half", "error", "error"]),
    (
        "`ai`, with `resumeStream()`",
        ["whole", "resumes", "whole", "whole", "whole", "error", "error", "half", "error", "error"],
    ),
    (
        "`ai`, with a resuming `fetch`",
        ["whole", "resumes", "whole", "whole", "whole", "error", "error", "half", "error", "error"],
    ),
    ("`@ag-ui/client`", ["whole", "error", "error", "error", "whole", "error", "error", "error", "error", "error"]),
    (
        "`@ag-ui/client`, with a resuming `fetch`",
        ["whole", "resumes", "whole", "whole", "whole", "error", "error", "error", "error", "error"],
    ),
    (
        "`@tanstack/ai-client`",
        [
            "whole",
            "first error, then resumes, last error",
            "whole",
            "whole",
            "whole",
            "error",
            "error",
            "error",
            "error",
            "error",
        ],
    ),
    (
        "`@langchain/langgraph-sdk`",
        ["whole", "resumes", "whole", "whole", "whole", "error", "error", "half", "error", "error"],
    ),
    (
        "`openai`, Responses",
        [
            "whole",
            "first error, then resumes, last resumes",
            "whole",
            "whole",
            "whole",
            "error",
            "whole",
            "half",
            "error",
            "error",
        ],
    ),
    (
        "`openai`, Chat Completions",
        ["whole", "error", "error", "error", "none", "none", "whole", "half", "error", "error"],
    ),
    (
        "`openai`, Responses in Python",
        [
            "whole",
            "first error, then resumes, last resumes",
            "whole",
            "whole",
            "whole",
            "error",
            "whole",
            "half",
            "error",
            "error",
        ],
    ),
    (
        "`@microsoft/fetch-event-source`",
        [
            "whole",
            "first resumes, then loses or resumes, last resumes",
            "whole",
            "whole",
            "whole",
            "error",
            "whole",
            "half",
            "error",
            "repeats",
        ],
    ),
    ("`eventsource`", ["whole", "resumes", "whole", "whole", "whole", "error", "whole", "half", "error", "error"]),
    ("`httpx-sse`", ["whole", "resumes", "whole", "whole", "whole", "error", "whole", "half", "error", "error"]),
];

pub fn of(client: &Client, case: Case) -> &'static str {
    let title = client.title();
    let outcomes = EXPECTED.iter().find(|(name, _)| *name == title).expect("a client without expectations").1;
    let number = Case::ALL.iter().position(|other| *other == case).unwrap();
    outcomes[number]
}

/// An explanation of an outcome, for the document.
pub struct Note {
    pub clients: &'static [&'static str],
    pub case: Case,
    pub text: &'static str,
}

pub const NOTES: &[Note] = &[
    Note {
        clients: &["`ai`"],
        case: Case::Break,
        text: "The chat has the status `error`. Call `resumeStream()`, or give the transport a resuming `fetch`.",
    },
    Note {
        clients: &["`ai`, with `resumeStream()`"],
        case: Case::Break,
        text: "The server sends the answer from the start. The client replaces the half answer, because `start` has a \
               `messageId`. The route of this call answers `404` for an unknown run: the client takes `204` for a success.",
    },
    Note {
        clients: &["`@ag-ui/client`"],
        case: Case::Break,
        text: "`runAgent` rejects. Give the agent a resuming `fetch`.",
    },
    Note {
        clients: &["`@tanstack/ai-client`"],
        case: Case::Break,
        text: "The client resumes from the first event to the last. Before the first event it has no id to resume from. If \
               only the end of the response is lost after the last event, the client reports an error with the whole text.",
    },
    Note {
        clients: &["`openai`, Responses", "`openai`, Responses in Python"],
        case: Case::Break,
        text: "Before the first event the caller does not know the id of the response, and so cannot resume.",
    },
    Note {
        clients: &["`openai`, Chat Completions"],
        case: Case::Break,
        text: "The interface has no route to read an answer again.",
    },
    Note {
        clients: &["`@microsoft/fetch-event-source`"],
        case: Case::Break,
        text: "The client takes an id as soon as it has read its line. If the connection breaks between that line and the \
               empty line after it, which is one byte of each event, the client loses this event without a report. \
               An application for which this matters numbers its events. Its page then notices the hole, and reads the \
               run again from the start.",
    },
    Note {
        clients: &["`ai`"],
        case: Case::Late,
        text: "The stream of a reload is for active runs only (`only_while_active`), and the page has the messages of ended \
               ones.",
    },
    Note {
        clients: &["`@microsoft/fetch-event-source`"],
        case: Case::Late,
        text: "With `GET` and its own `Accept` header, the client receives `204` for an unknown run and after the last \
               event. Its default `onopen` throws then, and the client repeats the request without end. Set `accept: */*` \
               and an `onerror` that throws.",
    },
    Note {
        clients: &["`@ag-ui/client`", "`@ag-ui/client`, with a resuming `fetch`", "`@tanstack/ai-client`"],
        case: Case::Stop,
        text: "AG-UI has no event for a stop, so the application publishes `RUN_ERROR`. The page asked for the stop, and \
               hides the error.",
    },
    Note {
        clients: &["`@ag-ui/client`", "`@ag-ui/client`, with a resuming `fetch`"],
        case: Case::Will,
        text: "`runAgent` resolves. The page learns of the error from `onRunErrorEvent`.",
    },
    Note {
        clients: &["`@langchain/langgraph-sdk`"],
        case: Case::Will,
        text: "The client delivers the event `error`, and the loop ends without an exception.",
    },
    Note {
        clients: &["`@langchain/langgraph-sdk`"],
        case: Case::Aborted,
        text: "The client resumes five times, and reports the error 30 to 60 seconds later. Set a last will.",
    },
    Note {
        clients: &["`@microsoft/fetch-event-source`"],
        case: Case::Aborted,
        text: "The client repeats its request without end, because each answer is a stream that breaks. Set a last will.",
    },
];
