//! `docs/compatibility.md`.

use std::fmt::Write;

use crate::case::Case;
use crate::client::{CLIENTS, Client, Origin, Reconnects};
use crate::deviation;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compatibility.md");

/// That the file is what follows from the expectations; or makes it so.
pub fn check() {
    let text = write();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &text).unwrap();
    }
    let file = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(file == text, "docs/compatibility.md is old: `UPDATE_DOCS=1 cargo test --test interop` writes it anew");
}

const HEAD: &str = "\
# Compatibility

Clients that people use, against a real server with a hub. This file is written by `tests/interop`, which runs each of them
through the same scenes and compares what it gives out with what was published; it fails when one of them does anything else than
is said here.

Browsers' own `EventSource` needs nothing of this. `docs/wire.md` says what a client in any language may rely on.
";

const COLUMNS: &str = "
`ok` means what the list below each table says. Where it is *by the caller*, the client reads one stream only. The loop around it
keeps the last id and `retry`, waits, and sends `Last-Event-ID`; it is in `tests/interop`, to be copied. Anything else is explained
under the client's name.
";

fn write() -> String {
    let mut out = String::from(HEAD);
    out.push_str(COLUMNS);
    table(&mut out, "What they read", Case::READING);
    table(&mut out, "What they do at the end", Case::RETURNING);
    out.push_str("\n## The clients\n");
    for client in CLIENTS {
        describe(&mut out, client);
    }
    out
}

fn table(out: &mut String, title: &str, cases: &[Case]) {
    let row = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<_> = cells.collect();
        format!("| {} |\n", cells.join(" | "))
    };
    writeln!(out, "\n## {title}\n").unwrap();
    let heads = cases.iter().map(|case| case.title().to_owned());
    out.push_str(&row(&mut std::iter::once("client".to_owned()).chain(heads)));
    writeln!(out, "|{}", "---|".repeat(cases.len() + 1)).unwrap();
    for client in CLIENTS {
        let cells = cases.iter().map(|case| cell(client, *case));
        out.push_str(&row(&mut std::iter::once(name(client)).chain(cells)));
    }
    out.push('\n');
    for case in cases {
        writeln!(out, "- *{}*: {}", case.title(), case.meaning()).unwrap();
    }
}

fn cell(client: &Client, case: Case) -> String {
    if let Some(deviation) = deviation::of(client, case) {
        return format!("**{}**", deviation.cell);
    }
    let returns = [Case::Resume, Case::Retry, Case::Clean, Case::Aborted, Case::Busy].contains(&case);
    let by_caller = match client.reconnects {
        Reconnects::Itself => false,
        Reconnects::Caller => returns,
        Reconnects::Either => [Case::Resume, Case::Aborted].contains(&case),
    };
    if by_caller { "by the caller" } else { "ok" }.to_owned()
}

fn name(client: &Client) -> String {
    let variant = if client.variant.is_empty() { String::new() } else { format!(", {}", client.variant) };
    format!("`{}`{variant}", client.name)
}

fn describe(out: &mut String, client: &Client) {
    let from = match client.origin {
        Origin::Npm => "npm",
        Origin::Python => "Python",
        Origin::Rust => "Rust",
        Origin::System => "As the system has it",
    };
    let from = client.version().map_or_else(|| from.to_owned(), |version| format!("{from}, {version}"));
    writeln!(out, "\n### {}\n\n{from}. Used here: {}.", name(client), client.usage).unwrap();
    let mut deviations = Case::ALL.into_iter().filter_map(|case| deviation::of(client, case)).peekable();
    if deviations.peek().is_some() {
        out.push('\n');
    }
    for deviation in deviations {
        writeln!(out, "- *{}*: {}", deviation.case.title(), deviation.text).unwrap();
    }
}
