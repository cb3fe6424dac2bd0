//! The part of `docs/compatibility.md` about runs.

use std::fmt::Write;

use super::expected::{self, NOTES};
use super::{CLIENTS, Case, Client};
use crate::client::Origin;
use crate::document::wrapped;

const HEAD: &str = "
## Runs

These tables list the behavior of clients that read [runs](guide/runs.md), each in its own protocol
and in the bare profile. The application of the test has the routes that each client expects, and
two instances with one log. `tests/interop/runs` has the application and the scripts to copy.

The outcomes are the same when the hub takes sockets over, over HTTP/2, and through nginx with
`proxy_http_version 1.1`. HTTP/1.0, the default of nginx before 1.29.7, cannot express a break, so
clients take a break for the end. The test repeats the breaks at every byte over HTTP/1.1 only. Over
HTTP/2 each request uses a separate connection.
";

const WORDS: &str = "
- *whole*: the client delivers the whole text and reports success
- *resumes*: the same, although the first response broke
- *retries*: the same, although the first request was refused
- *ends*: the client delivers the text up to the stop and reports success
- *error*: the client reports an error
- *nothing*: the client learns that nothing is active
- *none*: the protocol of the client has no such request
";

pub fn write(out: &mut String) {
    out.push_str(HEAD);
    table(out, "Reading a run", Case::READING);
    table(out, "Refusals and ends of a run", Case::ENDS);
    out.push_str("\nThe words in the cells:\n");
    out.push_str(WORDS);
    out.push_str("\n### Clients of runs\n");
    for client in CLIENTS {
        describe(out, client);
    }
}

fn table(out: &mut String, title: &str, cases: &[Case]) {
    writeln!(out, "\n### {title}\n").unwrap();
    let heads: Vec<&str> = cases.iter().map(|case| case.title()).collect();
    writeln!(out, "| Client | {} |\n|{}", heads.join(" | "), "---|".repeat(cases.len() + 1)).unwrap();
    for client in CLIENTS {
        let cells: Vec<&str> = cases.iter().map(|case| cell(*case, expected::of(client, *case))).collect();
        writeln!(out, "| {} | {} |", client.title(), cells.join(" | ")).unwrap();
    }
    out.push('\n');
    for case in cases {
        out.push_str(&wrapped(&format!("- *{}*: {}", case.title(), case.meaning()), "  "));
    }
}

/// Returns the words for an outcome.
fn cell(case: Case, outcome: &'static str) -> &'static str {
    match (case, outcome) {
        (Case::Instance | Case::Drain, "whole") => "resumes",
        (Case::Refused, "whole") => "retries",
        (Case::Stop, "half") => "ends",
        (Case::Break, "first error, then resumes, last error") => "resumes, **error at both ends**",
        (Case::Break, "first error, then resumes, last resumes") => "resumes, **error before the first event**",
        (Case::Break, "first resumes, then loses or resumes, last resumes") => "resumes, **can lose an event**",
        (_, "repeats") => "**repeats**",
        (_, other) => other,
    }
}

fn describe(out: &mut String, client: &Client) {
    let origin = if client.origin == Origin::Python { "Python" } else { "npm" };
    let (title, version) = (client.title(), client.version());
    writeln!(out, "\n#### {title}\n").unwrap();
    out.push_str(&wrapped(&format!("{origin}, {version}. Usage in the test: {}.", client.usage), ""));
    let mut notes = NOTES.iter().filter(|note| note.clients.contains(&&title[..])).peekable();
    if notes.peek().is_some() {
        out.push('\n');
    }
    for note in notes {
        out.push_str(&wrapped(&format!("- *{}*: {}", note.case.title(), note.text), "  "));
    }
}
