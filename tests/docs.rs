//! The documents: links and anchors exist, Rust blocks are compiled, JavaScript blocks parse, the
//! tests that `docs/guarantees.md` and `docs/scaling.md` name exist, and texts avoid the old idiom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::kit::{Server, skip, soon, until};
use axum::Router;
use tower_sse::{Disconnect, Event, Hub, Refusal, StreamRequest, Subscription};

// ---------------------------------------------------------------------------------------------------------------------
// Reading Markdown

struct Document {
    /// The path from the root of the repository.
    path: String,
    text: String,
}

struct Block {
    /// The number of the block's first line.
    line: usize,
    /// The text after the opening fence: the language and its attributes.
    info: String,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found
}

fn documents() -> Vec<Document> {
    let mut paths = files("docs", ".md");
    paths.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    paths.sort();
    let document = |path: PathBuf| Document {
        path: path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(path).unwrap(),
    };
    paths.into_iter().map(document).collect()
}

impl Document {
    /// Returns the lines with their numbers, and whether each is in a block of code.
    fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        let mut inside = false;
        self.text.lines().enumerate().map(move |(index, line)| {
            let is_fence = line.trim_start().starts_with("```");
            let in_code = inside || is_fence;
            inside ^= is_fence;
            (index + 1, line, in_code)
        })
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        for (number, line, _) in self.lines() {
            match line.trim_start().strip_prefix("```") {
                Some(_) if open => open = false,
                Some(info) => {
                    open = true;
                    blocks.push(Block { line: number + 1, info: info.trim().to_owned(), code: String::new() });
                }
                None if open => {
                    let code = &mut blocks.last_mut().unwrap().code;
                    code.push_str(line);
                    code.push('\n');
                }
                None => {}
            }
        }
        assert!(!open, "{}: a block of code is not closed", self.path);
        blocks
    }

    /// Returns the anchors of the headings, as GitHub and most others generate them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        let mut anchors = BTreeSet::new();
        for (_, line, in_code) in self.lines() {
            let title = line.trim_start_matches('#');
            if in_code || title.len() == line.len() || !title.starts_with(' ') {
                continue;
            }
            let anchor = slug(&without_targets(title.trim()));
            let time = times.entry(anchor.clone()).or_default();
            anchors.insert(if *time == 0 { anchor } else { format!("{anchor}-{time}") });
            *time += 1;
        }
        anchors
    }

    /// Returns the targets of the links, with the numbers of their lines.
    fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line, in_code) in self.lines() {
            if in_code {
                continue;
            }
            let line = without_code(line);
            let mut rest = line.as_str();
            while let Some((_, after)) = rest.split_once("](") {
                let (target, after) = after.split_once(')').expect("a link does not end on its line");
                links.push((number, target.to_owned()));
                rest = after;
            }
            // `[name]: target`
            if let Some((name, target)) = line.split_once("]: ")
                && name.starts_with('[')
                && !name.contains(']')
            {
                links.push((number, target.trim().to_owned()));
            }
        }
        links
    }
}

/// Returns a line without its `code`.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// Returns a title without the targets of its links.
fn without_targets(title: &str) -> String {
    let mut parts = title.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once(')').map_or(part, |(_, after)| after));
    }
    text
}

fn slug(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn document_has_the_anchors_links_and_blocks_of_its_text() {
    let text = "# A `b`: c's\n[x](y.md#z) `[no](no.md)` ![i](p.png)\n```js\n[n](o)\n# no\n```\n## [T](u.md)\n## T\n[r]: s.md\n";
    let document = Document { path: "a.md".into(), text: text.into() };
    assert_eq!(document.anchors(), ["a-b-cs", "t", "t-1"].map(str::to_owned).into());
    let links: Vec<_> = document.links().into_iter().map(|(_, target)| target).collect();
    assert_eq!(links, ["y.md#z", "p.png", "u.md", "s.md"]);
    let blocks = document.blocks();
    assert_eq!((blocks[0].info.as_str(), blocks[0].code.as_str(), blocks[0].line), ("js", "[n](o)\n# no\n", 4));
}

// ---------------------------------------------------------------------------------------------------------------------
// Links

#[test]
fn every_link_leads_to_an_existing_file_and_heading() {
    let documents = documents();
    let mut broken = Vec::new();
    for document in &documents {
        let folder = root().join(&document.path);
        for (line, link) in document.links() {
            if ["http://", "https://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = if target.is_empty() { folder.clone() } else { folder.with_file_name(target) };
            let Ok(path) = path.canonicalize() else {
                broken.push(format!("{}:{line}: no such file: {link}", document.path));
                continue;
            };
            let linked = documents.iter().find(|other| root().join(&other.path).canonicalize().unwrap() == path);
            if !anchor.is_empty() && !linked.is_some_and(|document| document.anchors().contains(anchor)) {
                broken.push(format!("{}:{line}: no such heading: {link}", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_document_is_linked_from_the_readme_or_the_guide() {
    let documents = documents();
    let mut linked = BTreeSet::new();
    for from in ["README.md", "docs/README.md"] {
        let document = documents.iter().find(|document| document.path == from).unwrap();
        for (_, link) in document.links() {
            let target = link.split('#').next().unwrap_or_default();
            linked.extend(root().join(from).with_file_name(target).canonicalize());
        }
    }
    for document in documents.iter().filter(|document| document.path.starts_with("docs/")) {
        let path = root().join(&document.path).canonicalize().unwrap();
        assert!(linked.contains(&path), "{} is linked from neither README.md nor docs/README.md", document.path);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Rust

/// `src/lib.rs` includes documents, so that their blocks are doctests. Blocks of other documents
/// and ignored blocks are not compiled.
#[test]
fn every_rust_block_is_compiled_or_gives_a_reason() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for document in documents() {
        let is_included = library.contains(&format!("include_str!(\"../{}\")", document.path));
        for block in document.blocks() {
            let mut info = block.info.split(',').map(str::trim);
            if info.next() != Some("rust") {
                continue;
            }
            let at = format!("{}:{}", document.path, block.line);
            if info.any(|word| word == "ignore") {
                let has_reason = block.code.contains("// Not compiled: ");
                assert!(has_reason, "{at}: give the reason: `// Not compiled: …`");
            } else {
                assert!(is_included, "{at} is not compiled: include the document at the end of src/lib.rs");
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// JavaScript

/// A temporary folder of one test, which is deleted at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tower-sse-docs-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn every_javascript_block_parses() {
    if !skip::has("node", "--version") {
        return;
    }
    let folder = Folder::new();
    let mut count = 0;
    let documents = documents();
    for (document, block) in
        documents.iter().flat_map(|document| document.blocks().into_iter().map(move |b| (document, b)))
    {
        if block.info == "js" {
            count += 1;
            // A module, in which `await` is permitted at the top level.
            let path = folder.write(&format!("{count}.mjs"), &block.code);
            let Output { status, stderr, .. } = Command::new("node").arg("--check").arg(path).output().unwrap();
            assert!(status.success(), "{}:{}\n{}", document.path, block.line, String::from_utf8_lossy(&stderr));
        }
    }
    assert!(count > 20, "{count} blocks were found");
}

/// The script files of the examples, and the scripts in their pages.
#[test]
fn scripts_of_the_examples_parse() {
    if !skip::has("node", "--version") {
        return;
    }
    let folder = Folder::new();
    let mut count = 0;
    let mut folders = vec![root().join("examples")];
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let is_a = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let scripts = if is_a("js") {
                vec![fs::read_to_string(&path).unwrap()]
            } else if is_a("html") {
                let text = fs::read_to_string(&path).unwrap();
                let after = text.split("<script").skip(1).filter_map(|rest| rest.split_once('>'));
                after.filter_map(|(_, rest)| rest.split_once("</script>")).map(|(code, _)| code.to_owned()).collect()
            } else {
                continue;
            };
            for script in scripts {
                count += 1;
                let file = folder.write(&format!("{count}.mjs"), &script);
                let Output { status, stderr, .. } = Command::new("node").arg("--check").arg(file).output().unwrap();
                assert!(status.success(), "{}\n{}", path.display(), String::from_utf8_lossy(&stderr));
            }
        }
    }
    assert!(count > 10, "{count} scripts were found");
}

/// Returns the first block of this language under a heading of a document.
fn block_under(path: &str, heading: &str, info: &str) -> String {
    let document = documents().into_iter().find(|document| document.path == path).unwrap();
    let at = document.lines().find(|(_, line, in_code)| !in_code && *line == heading).expect("no such heading").0;
    document.blocks().into_iter().find(|block| block.line > at && block.info == info).expect("no such block").code
}

/// The function `follow` of the recipes reads the events that an `EventSource` would read, resumes
/// after a disconnect, and stops at the responses at which an `EventSource` stops.
#[tokio::test]
async fn reader_without_event_source_reads_resumes_and_stops_when_it_is_forbidden() {
    if !skip::has("node", "--version") {
        return;
    }
    let hub = Hub::builder().retry(Duration::from_millis(100)).build().unwrap();
    let access = async |request: StreamRequest| {
        let token = request.headers().get("authorization").ok_or(Refusal::unauthorized())?;
        if token == "Bearer 42" { Ok(Subscription::for_user("ada").topic("t")) } else { Err(Refusal::forbidden()) }
    };
    let server = Server::start(&hub, Router::new().layer(hub.layer("/events", access))).await;
    let reader = block_under("docs/recipes.md", "## Browsers without `EventSource`", "js");
    let folder = Folder::new();
    let script = folder.write(
        "follow.mjs",
        &format!(
            "{reader}
            const [url, token] = process.argv.slice(2), stop = new AbortController();
            const status = await follow(url, {{ authorization: `Bearer ${{token}}` }}, ({{ name, data }}) => {{
                if (!name.startsWith('hub.')) console.log(name, JSON.stringify(data));
                if (name === 'end') stop.abort();
            }}, stop.signal);
            console.log(status);"
        ),
    );
    let url = format!("http://{}/events", server.addr);
    let run = |token| Command::new("node").arg(&script).arg(&url).arg(token).stdout(Stdio::piped()).spawn().unwrap();
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();

    let refused = run("41");
    let output = soon(tokio::task::spawn_blocking(|| refused.wait_with_output().unwrap())).await.unwrap();
    assert_eq!(text(output), "403\n");

    let reader = run("42");
    until(|| hub.stats().connections == 1).await;
    hub.topic("t").publish(Event::unnamed("one\ntwo ✓")).await.unwrap();
    hub.topic("t").publish(Event::new("note", "")).await.unwrap();
    until(|| hub.connections().iter().any(|connection| connection.delivered == 2)).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    // The client receives this event once, whether it has already reconnected or not.
    hub.topic("t").publish(Event::new("note", "after the disconnect")).await.unwrap();
    until(|| hub.connections().iter().any(|connection| connection.resumed && connection.delivered == 1)).await;
    hub.topic("t").publish(Event::new("end", "{}")).await.unwrap();
    let output = soon(tokio::task::spawn_blocking(|| reader.wait_with_output().unwrap())).await.unwrap();
    let expected = "message \"one\\ntwo ✓\"\nnote \"\"\nnote \"after the disconnect\"\nend \"{}\"\nundefined\n";
    assert_eq!(text(output), expected);
}

// ---------------------------------------------------------------------------------------------------------------------
// Guarantees

/// Every test that `docs/guarantees.md` and `docs/scaling.md` name as evidence exists.
#[test]
fn tests_that_the_guarantees_name_exist() {
    let sources: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let is_function = |name: &str| {
        let heads = [format!("fn {name}("), format!("fn {name}<")];
        sources.iter().any(|source| heads.iter().any(|head| source.contains(head)))
    };
    let mut count = 0;
    let has_evidence = |document: &Document| ["docs/guarantees.md", "docs/scaling.md"].contains(&&*document.path);
    for document in documents().into_iter().filter(has_evidence) {
        for (number, line, in_code) in document.lines() {
            let place = format!("{}:{number}", document.path);
            for name in line.split('`').skip(1).step_by(2).filter(|_| !in_code) {
                assert!(!name.starts_with('…'), "{place}: {name} is not a complete name");
                if name.starts_with("tests/") || name.starts_with("benches/") {
                    assert!(root().join(name).exists(), "{place}: {name} does not exist");
                    count += 1;
                } else if ["log::", "hub::", "mount::", "net::"].iter().any(|at| name.starts_with(at)) {
                    let exists = root().join(format!("src/{}.rs", name.replace("::", "/"))).exists();
                    assert!(exists, "{place}: {name} does not exist");
                    count += 1;
                } else if name.matches('_').count() > 2
                    && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'))
                {
                    assert!(is_function(name), "{place}: no test has the name {name}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 40, "{count} names were found");
}

// ---------------------------------------------------------------------------------------------------------------------
// The language

/// Phrases of the old idiom. The rules are in `CONTRIBUTING.md`, the terms in `docs/glossary.md`.
const AVOIDED: [&str; 11] = [
    "nobody in particular",
    "to be had",
    "whoever",
    "somebody",
    "nobody",
    "for ever",
    "tidings",
    "barred",
    "refused softly",
    "told of a gap",
    "one sees",
];

/// The maximum width of prose and comments, in columns. Tables and links are exempt.
const WIDTH: usize = 100;

/// Returns the files whose words are checked, with their texts.
fn prose() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    for folder in ["src", "docs", "examples"] {
        paths.extend([".rs", ".md", ".html", ".js"].iter().flat_map(|ending| files(folder, ending)));
    }
    paths.retain(|path| !path.ends_with("docs/glossary.md"));
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn texts_avoid_phrases_that_readers_do_not_know() {
    let mut found = Vec::new();
    for (path, text) in prose() {
        // A phrase can continue on the next line, also in a comment.
        let words = text.replace("///", "").replace("//!", "").replace("//", "").to_lowercase();
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let aliases: Vec<&str> = text.lines().filter(|line| line.contains("doc(alias")).collect();
        for phrase in AVOIDED {
            let in_aliases = aliases.iter().filter(|line| line.to_lowercase().contains(phrase)).count();
            let times = words.match_indices(phrase).filter(|(at, _)| is_whole(&words, *at, phrase.len())).count();
            if times > in_aliases {
                found.push(format!("{}: {phrase:?}, {times} times", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "name the actor and its action instead of these phrases:\n{}", found.join("\n"));
}

/// Whether a phrase is not only a part of a word, as "barred" is a part of "disbarred".
fn is_whole(text: &str, at: usize, len: usize) -> bool {
    let is_letter = |character: char| character.is_alphanumeric();
    !text[..at].ends_with(is_letter) && !text[at + len..].starts_with(is_letter)
}

#[test]
fn prose_and_comments_are_narrow_enough_to_read() {
    let mut found = Vec::new();
    for (path, text) in prose() {
        let is_markdown = path.extension().is_some_and(|extension| extension == "md");
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            let start = line.trim_start();
            let is_comment = is_rust && start.starts_with("//");
            let start = start.trim_start_matches(['/', '!']).trim_start();
            let is_fence = start.starts_with("```");
            in_code ^= is_fence && (is_markdown || is_comment);
            let is_exempt = in_code || start.starts_with('|') || line.contains("](") || line.contains("://");
            if (is_markdown || is_comment) && !is_exempt && line.chars().count() > WIDTH {
                found.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    assert!(found.is_empty(), "wider than {WIDTH} columns:\n{}", found.join("\n"));
}
