//! The clients that read runs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::client::{INSTALLED, Origin, SOURCES};

#[derive(Debug)]
pub struct Client {
    /// The name of the package.
    pub package: &'static str,
    /// The way of use, if the package has several.
    pub variant: &'static str,
    pub origin: Origin,
    /// The script, in the folder `runs` of its origin.
    script: &'static str,
    /// The name of the client in its script.
    pub variant_in_script: &'static str,
    /// Whether a stream that broke is continued, by the client or by the code around it.
    pub resumes: bool,
    /// Tests every byte, or every nth byte of a long stream.
    pub step: usize,
    /// Whether the client waits at least a second before it resumes.
    pub is_slow: bool,
    /// The usage, for the document.
    pub usage: &'static str,
}

const NODE: Client = Client {
    package: "",
    variant: "",
    origin: Origin::Npm,
    script: "",
    variant_in_script: "plain",
    resumes: true,
    step: 1,
    is_slow: false,
    usage: "",
};

pub const CLIENTS: &[Client] = &[
    Client {
        package: "ai",
        script: "ai.mjs",
        resumes: false,
        step: 7,
        usage: "the chat of `useChat` without React, with `DefaultChatTransport`",
        ..NODE
    },
    Client {
        package: "ai",
        variant: "with `resumeStream()`",
        script: "ai.mjs",
        variant_in_script: "call",
        step: 7,
        usage: "the same; after an error, the page calls `resumeStream()` once",
        ..NODE
    },
    Client {
        package: "ai",
        variant: "with a resuming `fetch`",
        script: "ai.mjs",
        variant_in_script: "fetch",
        usage: "the same with `node/runs/resuming-fetch.mjs` as `fetch`",
        ..NODE
    },
    Client {
        package: "@ag-ui/client",
        script: "ag-ui.mjs",
        resumes: false,
        step: 7,
        usage: "`HttpAgent` and `runAgent`; a reload reads the run with `GET` in an agent without the half answer",
        ..NODE
    },
    Client {
        package: "@ag-ui/client",
        variant: "with a resuming `fetch`",
        script: "ag-ui.mjs",
        variant_in_script: "fetch",
        step: 3,
        usage: "the same with `node/runs/resuming-fetch.mjs` as `fetch`",
        ..NODE
    },
    Client {
        package: "@tanstack/ai-client",
        script: "tanstack.mjs",
        usage: "`ChatClient` with `fetchServerSentEvents`, on a stream with `Ids::First`; a reload has `persistence: true`",
        ..NODE
    },
    Client {
        package: "@langchain/langgraph-sdk",
        script: "langgraph.mjs",
        is_slow: true,
        step: 3,
        usage: "`client.runs.stream`; a reload calls `joinStream`, and a stop calls `cancel`",
        ..NODE
    },
    Client {
        package: "openai",
        variant: "Responses",
        script: "openai.mjs",
        variant_in_script: "loop",
        step: 7,
        usage: "`responses.stream`; after a break the caller calls `responses.retrieve` with `starting_after`",
        ..NODE
    },
    Client {
        package: "openai",
        variant: "Chat Completions",
        script: "openai.mjs",
        variant_in_script: "chat",
        resumes: false,
        step: 7,
        usage: "`chat.completions.create` with `stream: true`; the application publishes `[DONE]` as the last event",
        ..NODE
    },
    Client {
        package: "openai",
        variant: "Responses in Python",
        origin: Origin::Python,
        script: "openai_responses.py",
        variant_in_script: "loop",
        step: 7,
        usage: "the same in Python",
        ..NODE
    },
    Client {
        package: "@microsoft/fetch-event-source",
        script: "plain.mjs",
        variant_in_script: "fetchEventSource",
        usage: "`POST`; `onopen` throws at any status other than 200, and `onerror` rethrows unless the status is 503",
        ..NODE
    },
    Client {
        package: "eventsource",
        script: "plain.mjs",
        variant_in_script: "eventSource",
        usage: "another request begins the run; the page closes the `EventSource` at the last event",
        ..NODE
    },
    Client {
        package: "httpx-sse",
        origin: Origin::Python,
        script: "httpx_sse_loop.py",
        variant_in_script: "loop",
        usage: "another request begins the run; a loop around `connect_sse` keeps the last id",
        ..NODE
    },
];

impl Client {
    /// Returns the name and the variant, as in the document.
    pub fn title(&self) -> String {
        let Self { package, variant, .. } = self;
        if variant.is_empty() { format!("`{package}`") } else { format!("`{package}`, {variant}") }
    }

    /// Returns the version in the list of packages.
    pub fn version(&self) -> String {
        crate::client::version(self.origin, self.package).unwrap()
    }

    /// Returns the program and its arguments.
    pub fn command(&self) -> Vec<OsString> {
        let (sources, installed) = (Path::new(SOURCES), Path::new(INSTALLED));
        let command: [PathBuf; 2] = match self.origin {
            Origin::Python => [installed.join("python/bin/python"), sources.join("python/runs").join(self.script)],
            _ => [installed.join("node/node_modules/.bin/node"), installed.join("node/runs").join(self.script)],
        };
        command.into_iter().map(PathBuf::into_os_string).collect()
    }
}
