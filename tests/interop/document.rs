//! Writes and checks `docs/compatibility.md`.

use std::fmt::Write;

use crate::case::Case;
use crate::client::{CLIENTS, Client, Origin, Reconnects};
use crate::deviation;
use crate::runs;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compatibility.md");

/// Checks that the file matches the expectations. With `UPDATE_DOCS` set, writes the file first.
pub fn check() {
    let text = write();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &text).unwrap();
    }
    let file = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        file == text,
        "docs/compatibility.md is outdated: `UPDATE_DOCS=1 cargo test --test interop` writes it again"
    );
}

const HEAD: &str = "\
# Compatibility

This page lists the behavior of common clients against a real server with a hub. The test
`tests/interop` writes this page. It runs each client through the same scenes, and compares the
events that the client delivers with the events that were published. The test fails when a client
behaves differently from this page.

A browser's own `EventSource` needs none of these hints. [Hypermedia](hypermedia.md) lists the
behavior of htmx, Datastar and Turbo. [Wire format](wire.md) is the specification for clients in any
language.
";

const COLUMNS: &str = "
`ok` means that the client meets the condition in the list below the table. *by the caller* means
that the client reads only one stream. Then a loop around the client keeps the last id and
`retry`, waits, and sends `Last-Event-ID`. `tests/interop` has such loops to copy. The section of
the client explains every other cell.
";

fn write() -> String {
    let mut out = String::from(HEAD);
    out.push_str(COLUMNS);
    table(&mut out, "Reading", Case::READING);
    table(&mut out, "Reconnecting", Case::RETURNING);
    out.push_str("\n## Clients\n");
    for client in CLIENTS {
        describe(&mut out, client);
    }
    runs::document::write(&mut out);
    out
}

fn table(out: &mut String, title: &str, cases: &[Case]) {
    let row = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<_> = cells.collect();
        format!("| {} |\n", cells.join(" | "))
    };
    writeln!(out, "\n## {title}\n").unwrap();
    let heads = cases.iter().map(|case| case.title().to_owned());
    out.push_str(&row(&mut std::iter::once("Client".to_owned()).chain(heads)));
    writeln!(out, "|{}", "---|".repeat(cases.len() + 1)).unwrap();
    for client in CLIENTS {
        let cells = cases.iter().map(|case| cell(client, *case));
        out.push_str(&row(&mut std::iter::once(name(client)).chain(cells)));
    }
    out.push('\n');
    for case in cases {
        out.push_str(&wrapped(&format!("- *{}*: {}", case.title(), case.meaning()), "  "));
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
        Origin::System => "The version of the system",
    };
    let from = client.version().map_or_else(|| from.to_owned(), |version| format!("{from}, {version}"));
    writeln!(out, "\n### {}\n", name(client)).unwrap();
    out.push_str(&wrapped(&format!("{from}. Usage in the test: {}.", client.usage), ""));
    let mut deviations = Case::ALL.into_iter().filter_map(|case| deviation::of(client, case)).peekable();
    if deviations.peek().is_some() {
        out.push('\n');
    }
    for deviation in deviations {
        out.push_str(&wrapped(&format!("- *{}*: {}", deviation.case.title(), deviation.text), "  "));
    }
}

/// The text in lines of at most 100 columns. `indent` starts every line but the first. A line does
/// not end within `code`.
pub fn wrapped(text: &str, indent: &str) -> String {
    // A line does not break at a space within code.
    let mut in_code = false;
    let words = text.split(|character| {
        in_code ^= character == '`';
        character == ' ' && !in_code
    });
    let (mut out, mut width) = (String::new(), 0);
    for word in words {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 100 {
            write!(out, "\n{indent}").unwrap();
            width = indent.len();
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
    }
    out.push('\n');
    out
}
