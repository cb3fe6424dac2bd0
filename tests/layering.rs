//! Who may import whom. A module that reaches for one outside its row fails here, with the file and the line.
//!
//! The table is law; `docs/architecture.md` says why. Every `crate::` and `super::` path counts, but for comments.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A layer and the layers that it may import, beside itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("sync", &[]),
    ("wire", &["types"]),
    ("log", &["types", "wire", "sync"]),
    ("backplane", &["types"]),
    ("hub", &["types", "wire", "log", "sync", "backplane"]),
    ("net", &["types", "wire", "hub"]),
    ("mount", &["types", "wire", "hub", "net"]),
    ("extract", &["hub", "mount"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module path of a file: `src/log/reader.rs` is `["log", "reader"]`.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The text without line comments and documentation; strings cannot hold a path that the compiler would follow.
fn code(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().enumerate();
    lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned())).collect()
}

/// The top-level modules that a line names: after `crate::`, and after as many `super::` as lead to the root.
/// A group `crate::{a, b::c}` names each of its parts.
fn named(line: &str, depth: usize) -> Vec<String> {
    let mut names = Vec::new();
    let to_root = "super::".repeat(depth);
    let roots = [Some("crate::"), (depth > 0).then_some(to_root.as_str())];
    for root in roots.into_iter().flatten() {
        for (at, _) in line.match_indices(root) {
            // `super::super::x` in a file at depth one would not compile; at depth two `super::x` is its own layer.
            if root != "crate::" && line[..at].ends_with("super::") {
                continue;
            }
            let rest = &line[at + root.len()..];
            if root != "crate::" && rest.starts_with("super::") {
                continue;
            }
            let first = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
            match rest.strip_prefix('{') {
                Some(group) => names.extend(group.split(',').map(|part| first(part.trim()))),
                None => names.push(first(rest)),
            }
        }
    }
    names
}

#[test]
fn no_module_imports_against_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let (mut wrong, mut arrows) = (Vec::new(), 0);
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = module_of(relative);
        let Some(top) = module.first() else { continue }; // lib.rs re-exports and does nothing else
        let own = top.as_str();
        let Some(may) = allowed.get(own) else {
            wrong.push(format!("{}: no layer has this module", relative.display()));
            continue;
        };
        // `super` in `log/mod.rs` and in `extract.rs` is the root; in `log/reader.rs` it is `log`.
        let depth = module.len();
        for (number, line) in code(&fs::read_to_string(&file).unwrap()) {
            for name in named(&line, depth).into_iter().filter(|name| name.starts_with(char::is_lowercase)) {
                arrows += 1;
                let layer = name.as_str();
                let is_root_alias = layer == "self";
                if layer != own && !may.contains(&layer) && !is_root_alias {
                    wrong.push(format!("{}:{number}: `{own}` may not import `{name}`", relative.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(arrows > 100, "the imports were not found");
}

#[test]
fn the_check_sees_what_it_should() {
    assert_eq!(named("use crate::hub::Hub;", 2), ["hub"]);
    assert_eq!(named("use crate::{hub::Hub, wire};", 1), ["hub", "wire"]);
    assert_eq!(named("use super::http;", 1), ["http"]);
    assert_eq!(named("use super::store::Record;", 2), Vec::<String>::new());
    assert_eq!(named("let x = super::super::hub::Hub;", 2), ["hub"]);
    assert_eq!(code("a // crate::hub\n/// crate::log").concat_text(), "a ");
}

trait ConcatText {
    fn concat_text(&self) -> String;
}

impl ConcatText for Vec<(usize, String)> {
    fn concat_text(&self) -> String {
        self.iter().map(|(_, line)| line.as_str()).collect()
    }
}

/// The median file is short and none is about two things; a long one is a reason to look.
#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut lines: Vec<usize> = files.iter().map(|file| fs::read_to_string(file).unwrap().lines().count()).collect();
    lines.sort_unstable();
    assert!(lines[lines.len() / 2] <= 200, "median of {} lines", lines[lines.len() / 2]);
}
