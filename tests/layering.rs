//! The order of the source files.
//!
//! 1. A file imports only files of a lower rank, or of its own row of [`RANKS`]. A re-export counts
//!    as the file that it leads to.
//! 2. A module of the top level imports only the modules that the table in `docs/architecture.md`
//!    lists for it.
//! 3. Imports and calls of methods of `Hub`, `Inner` and `Target` together contain no cycle of
//!    files.
//! 4. Only the files of [`METHOD_FILES`] have an `impl Hub`, `impl Inner` or `impl Target`.
//!    Otherwise a cycle could move from the imports into the methods.
//!
//! `docs/architecture.md` explains the order. Code of tests does not count.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, ImplItem, Item, UseTree};

/// Folders and files, from the lowest to the highest. The longest prefix of a file counts. Files of
/// equal rank import each other only within one row.
const RANKS: &[(u8, &str)] = &[
    (0, "macros"),
    (0, "types"),
    (1, "sync"),
    (1, "wire"),
    (2, "backplane"),
    (2, "log"),
    // The state of a hub. It names neither `Hub` nor `Inner`.
    (10, "hub/config"),
    (10, "hub/departures"),
    (10, "hub/tasks"),
    (10, "hub/observe"),
    (11, "hub/connection"),
    (11, "hub/peers"),
    (12, "hub/runs"),
    (12, "hub/observe/lifecycle"),
    (13, "hub/membership/roster"),
    (13, "hub/tickets/store"),
    (13, "hub/upkeep/schedule"),
    (13, "hub/cluster/blocks"),
    (13, "hub/cluster/record"),
    (13, "hub/cluster/settings_digest"),
    (14, "hub/cluster/history"),
    (14, "hub/cluster/peek"),
    (15, "hub/cluster/shared_log"),
    // All of the state in one file, and then the operations on it.
    (20, "hub/inner"),
    (21, "hub/membership"),
    (21, "hub/runs/local"),
    (22, "hub/stream"),
    (23, "hub/upkeep"),
    (23, "hub/cluster"),
    (23, "hub/tickets"),
    // The methods that an application calls.
    (30, "hub"),
    (40, "net"),
    (41, "mount"),
    (42, "extract"),
    (43, "test_kit"),
    (44, "describe"),
    (50, "lib"),
];

/// The files that implement methods of `Hub`, `Inner` or `Target`.
const METHOD_FILES: &[&str] = &[
    "hub/builder",
    "hub/cluster/append",
    "hub/cluster/apply",
    "hub/cluster/backfill",
    "hub/cluster/broadcast",
    "hub/cluster/bus",
    "hub/cluster/commands",
    "hub/cluster/connections",
    "hub/cluster/follow",
    "hub/cluster/run_ends",
    "hub/cluster/runs",
    "hub/command",
    "hub/inner",
    "hub/inspect",
    "hub/leftovers",
    "hub/membership/audience",
    "hub/membership/changes",
    "hub/presence",
    "hub/publish",
    "hub/publisher",
    "hub/run",
    "hub/runs/local",
    "hub/shutdown",
    "hub/stream/admission",
    "hub/stream/close",
    "hub/stream/commands",
    "hub/subscriber",
    "hub/target",
    "hub/tickets/redeem",
    "hub/tickets/shared",
    "hub/topics",
    "hub/upkeep/recheck",
    "hub/upkeep/sweep",
    "mount/endpoint",
    "mount/hook",
    "mount/layer",
    "mount/origin",
    "mount/respond",
    "mount/ticket",
    "mount/topics",
    "net/io",
    "net/listener",
];
const METHOD_TYPES: &[&str] = &["Hub", "Inner", "Target"];

/// A path in the source: `crate::hub::Hub` is `["crate", "hub", "Hub"]`.
type Segments = Vec<String>;

/// One file, without the code of its tests.
#[derive(Default)]
struct Source {
    /// The items that it defines.
    items: BTreeSet<String>,
    /// The imports of its `use` items, by their name in this file. `*` stands for a glob.
    uses: Vec<(String, Segments)>,
    /// All other paths.
    paths: BTreeSet<Segments>,
    /// The methods that it calls on `hub` or `inner`.
    calls: BTreeSet<String>,
    /// The methods that it calls on `self`.
    calls_of_self: BTreeSet<String>,
    /// The types that it implements methods for.
    implemented: BTreeSet<String>,
    /// The methods of the types in [`METHOD_TYPES`].
    methods: BTreeSet<String>,
    /// The methods of all other types, and of traits.
    other_methods: BTreeSet<String>,
    /// The macros that it defines, with the functions in them.
    macros: BTreeMap<String, Vec<String>>,
    /// The macros that define methods, and whether these are methods of the types in
    /// [`METHOD_TYPES`].
    made_by: Vec<(String, bool)>,
}

/// The module tree of `src`: `hub/inner` for `hub/inner.rs`, `hub` for `hub/mod.rs`.
struct Tree(BTreeMap<String, Source>);

static TREE: LazyLock<Tree> = LazyLock::new(Tree::read);

impl Source {
    fn read(text: &str) -> Self {
        let mut source = Self::default();
        source.add(syn::parse_file(text).unwrap().items);
        source
    }

    fn add(&mut self, items: Vec<Item>) {
        for item in items.into_iter().filter(|item| !is_of_tests(item)) {
            let name = match &item {
                Item::Use(item) => {
                    self.add_use(&item.tree, Vec::new());
                    continue;
                }
                Item::Mod(item) => {
                    self.add(item.content.iter().flat_map(|(_, items)| items.clone()).collect());
                    continue;
                }
                Item::Impl(item) => {
                    let of = last_name(&item.self_ty.to_token_stream());
                    let is_method_type = item.trait_.is_none() && METHOD_TYPES.contains(&of.as_str());
                    let methods = if is_method_type { &mut self.methods } else { &mut self.other_methods };
                    for item in &item.items {
                        match item {
                            ImplItem::Fn(method) => _ = methods.insert(method.sig.ident.to_string()),
                            ImplItem::Macro(item) => {
                                self.made_by.push((last_name(&item.mac.path.to_token_stream()), is_method_type));
                            }
                            _ => {}
                        }
                    }
                    if item.trait_.is_none() {
                        self.implemented.insert(of);
                    }
                    None
                }
                Item::Trait(item) => Some(&item.ident),
                Item::Const(item) => Some(&item.ident),
                Item::Enum(item) => Some(&item.ident),
                Item::Fn(item) => Some(&item.sig.ident),
                Item::Static(item) => Some(&item.ident),
                Item::Struct(item) => Some(&item.ident),
                Item::Type(item) => Some(&item.ident),
                Item::Macro(item) => item.ident.as_ref(),
                _ => None,
            };
            self.items.extend(name.map(ToString::to_string));
            if let Item::Macro(item) = &item {
                // `pin_project!` contains the definition of a type.
                self.items.extend(defined(&item.mac.tokens));
                if let Some(name) = &item.ident {
                    self.macros.insert(name.to_string(), all_defined(&item.mac.tokens));
                }
            }
            self.scan(item.to_token_stream());
        }
    }

    fn add_use(&mut self, tree: &UseTree, before: Segments) {
        let with = |name: String| before.iter().cloned().chain([name]).collect::<Segments>();
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, with(path.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, before.clone())),
            UseTree::Name(name) if name.ident == "self" => {
                self.uses.push((before.last().cloned().unwrap_or_default(), before));
            }
            UseTree::Name(name) => self.uses.push((name.ident.to_string(), with(name.ident.to_string()))),
            UseTree::Rename(rename) => self.uses.push((rename.rename.to_string(), with(rename.ident.to_string()))),
            UseTree::Glob(_) => self.uses.push(("*".into(), before)),
        }
    }

    /// Finds paths and calls, inside macros too.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let punct =
            |at: usize, wanted: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == wanted);
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                // `pub(in crate::hub)` imports nothing.
                TokenTree::Group(group) if is_visibility(&group.stream()) => {}
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Ident(first) => {
                    let is_called = matches!(tokens.get(at + 1), Some(TokenTree::Group(_)));
                    if at > 1
                        && is_called
                        && punct(at - 1, '.')
                        && let TokenTree::Ident(of) = &tokens[at - 2]
                    {
                        match of.to_string().as_str() {
                            "hub" | "inner" => _ = self.calls.insert(first.to_string()),
                            "self" => _ = self.calls_of_self.insert(first.to_string()),
                            _ => {}
                        }
                    }
                    let mut path = vec![first.to_string()];
                    while punct(at + 1, ':')
                        && punct(at + 2, ':')
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        path.push(next.to_string());
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.paths.insert(path);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

fn is_of_tests(item: &Item) -> bool {
    let attributes: &[Attribute] = match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    };
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string().replace(' ', "");
        text.starts_with("#[cfg(test") || text.starts_with("#[cfg(all(test")
    })
}

fn is_visibility(tokens: &TokenStream) -> bool {
    matches!(tokens.clone().into_iter().next(), Some(TokenTree::Ident(first)) if first == "in")
}

/// Returns the last name of a type, without its parameters.
fn last_name(tokens: &TokenStream) -> String {
    let text = tokens.to_string();
    let text = text.split('<').next().unwrap_or_default();
    text.rsplit("::").next().unwrap_or_default().trim().to_owned()
}

/// Returns the names after `struct`, `enum` or `fn`.
fn defined(tokens: &TokenStream) -> Vec<String> {
    let names: Vec<String> = tokens.clone().into_iter().map(|token| token.to_string()).collect();
    names
        .windows(2)
        .filter(|pair| ["struct", "enum", "fn"].contains(&pair[0].as_str()))
        .map(|pair| pair[1].clone())
        .collect()
}

/// Like `defined`, but also in groups such as the arms of a macro.
fn all_defined(tokens: &TokenStream) -> Vec<String> {
    let inside = tokens.clone().into_iter().filter_map(|token| match token {
        TokenTree::Group(group) => Some(all_defined(&group.stream())),
        _ => None,
    });
    inside.flatten().chain(defined(tokens)).collect()
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        collect(&root, &root, &mut files);
        assert!(files.len() > 100, "the sources were not found");
        let mut of_tests = BTreeSet::new();
        for (name, text) in &files {
            for module in modules_of_tests(text) {
                of_tests.insert(format!("{name}/{module}"));
            }
        }
        files
            .retain(|name, _| !of_tests.iter().any(|module| name == module || name.starts_with(&format!("{module}/"))));
        let mut sources: BTreeMap<String, Source> =
            files.into_iter().map(|(name, text)| (name, Source::read(&text))).collect();
        let macros: BTreeMap<String, Vec<String>> = sources.values().flat_map(|source| source.macros.clone()).collect();
        for source in sources.values_mut() {
            for (name, is_method_type) in &source.made_by {
                let methods = if *is_method_type { &mut source.methods } else { &mut source.other_methods };
                methods.extend(macros.get(name).into_iter().flatten().cloned());
            }
        }
        Self(sources)
    }

    /// Returns the file that a path of another file leads to, through all re-exports.
    fn target(&self, from: &str, path: &[String], depth: usize) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk("lib", rest, depth),
            "self" => self.walk(from, rest, depth),
            "super" => self.walk(parent(from)?, rest, depth),
            _ if self.child(from, first).is_some() => self.walk(from, path, depth),
            _ => {
                let (_, used) = self.0[from].uses.iter().find(|(name, _)| name == first)?;
                // The path starts with an imported name.
                let whole: Segments = used.iter().chain(rest).cloned().collect();
                if whole == path { None } else { self.target(from, &whole, depth.checked_sub(1)?) }
            }
        }
    }

    fn walk(&self, from: &str, path: &[String], depth: usize) -> Option<String> {
        let Some((first, rest)) = path.split_first() else { return Some(from.to_owned()) };
        if first == "super" {
            return self.walk(parent(from)?, rest, depth);
        }
        if let Some(child) = self.child(from, first) {
            return self.walk(&child, rest, depth);
        }
        let source = self.0.get(from)?;
        if source.items.contains(first) {
            return Some(from.to_owned());
        }
        let depth = depth.checked_sub(1)?;
        if let Some((_, used)) = source.uses.iter().find(|(name, _)| name == first) {
            let whole: Segments = used.iter().chain(rest).cloned().collect();
            return self.target(from, &whole, depth);
        }
        let globs = source.uses.iter().filter(|(name, _)| name == "*");
        globs.filter_map(|(_, used)| self.target(from, used, depth)).find(|file| self.0[file].items.contains(first))
    }

    fn child(&self, of: &str, name: &str) -> Option<String> {
        let child = if of == "lib" { name.to_owned() } else { format!("{of}/{name}") };
        self.0.contains_key(&child).then_some(child)
    }

    /// Returns each import as the importing file, the imported file, and the path.
    fn imports(&self) -> Vec<(String, String, String)> {
        let mut arrows = Vec::new();
        for (file, source) in &self.0 {
            let uses = source.uses.iter().map(|(_, path)| path);
            let has_children = self.0.keys().any(|other| parent(other) == Some(file) && other != file);
            // A re-export of a folder's own files is no import.
            let uses: Vec<&Segments> = if has_children { Vec::new() } else { uses.collect() };
            for path in uses.into_iter().chain(&source.paths) {
                if let Some(to) = self.target(file, path, 8)
                    && to != *file
                {
                    arrows.push((file.clone(), to, path.join("::")));
                }
            }
        }
        arrows
    }

    /// Returns each call of a method of `Hub`, `Inner` or `Target` as the calling file, the
    /// defining file, and the method. A call on `self` counts only if no other type has a method of
    /// this name.
    fn calls(&self) -> Vec<(String, String, String)> {
        let mut defined: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
        for (file, source) in &self.0 {
            source.methods.iter().for_each(|method| _ = defined.entry(method).or_default().insert(file));
        }
        let others: BTreeSet<&String> = self.0.values().flat_map(|source| &source.other_methods).collect();
        let mut arrows = Vec::new();
        for (file, source) in &self.0 {
            // `self` can be one of the three types only in the listed files.
            let of_self = source.calls_of_self.iter().filter(|_| METHOD_FILES.contains(&file.as_str()));
            let of_self = of_self.filter(|call| !others.contains(call));
            for call in source.calls.iter().chain(of_self) {
                // A file that defines the method calls its own.
                let files = defined.get(call).filter(|files| !files.contains(file));
                for to in files.into_iter().flatten() {
                    arrows.push((file.clone(), (*to).clone(), format!(".{call}()")));
                }
            }
        }
        arrows
    }
}

/// Returns the parent of a module. The parent of a top-level module is `lib`.
fn parent(file: &str) -> Option<&str> {
    match file.rsplit_once('/') {
        Some((parent, _)) => Some(parent),
        None => (file != "lib").then_some("lib"),
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().with_extension("").to_string_lossy().replace('\\', "/");
            let name = name.strip_suffix("/mod").map(str::to_owned).unwrap_or(name);
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns the files that a file declares as modules of its tests.
fn modules_of_tests(text: &str) -> Vec<String> {
    let items = syn::parse_file(text).unwrap().items;
    let modules = items.into_iter().filter(is_of_tests).filter_map(|item| match item {
        Item::Mod(module) if module.content.is_none() => Some(module.ident.to_string()),
        _ => None,
    });
    modules.collect()
}

/// Returns the rank of a file, and the row of [`RANKS`] that sets it.
fn rank(file: &str) -> Option<(u8, &'static str)> {
    let is_in = |row: &str| file == row || file.starts_with(&format!("{row}/"));
    RANKS.iter().filter(|(_, row)| is_in(row)).max_by_key(|(_, row)| row.len()).copied()
}

#[test]
fn a_file_imports_and_calls_only_files_of_lower_rank() {
    let tree = &*TREE;
    let (imports, calls) = (tree.imports(), tree.calls());
    assert!(imports.len() > 500, "only {} imports were found", imports.len());
    assert!(calls.len() > 100, "only {} calls were found", calls.len());
    let mut wrong = BTreeSet::new();
    for file in tree.0.keys().filter(|file| rank(file).is_none()) {
        wrong.insert(format!("{file}: no row of RANKS has this file"));
    }
    for (from, to, what) in imports.iter().chain(&calls) {
        if let (Some((rank_from, row_from)), Some((rank_to, row_to))) = (rank(from), rank(to))
            && rank_from <= rank_to
            && row_from != row_to
        {
            wrong.insert(format!("{from} may not use {to}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

/// The table of `docs/architecture.md`: each module of the top level, and the modules that it may
/// import.
fn table_of_modules() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let document = include_str!("../docs/architecture.md");
    let rows = document.lines().skip_while(|line| *line != "| Module | Purpose | May import |").skip(2);
    let cells = rows.map_while(|row| row.strip_prefix("| `")?.strip_suffix('|')?.split_once('`'));
    cells
        .map(|(module, rest)| {
            let may_import = rest.rsplit('|').next().unwrap_or_default();
            (module, may_import.split(',').map(str::trim).filter(|name| !name.is_empty()).collect())
        })
        .collect()
}

#[test]
fn a_module_imports_and_calls_only_the_modules_in_the_document() {
    let (tree, table) = (&*TREE, table_of_modules());
    assert!(table.len() > 8, "only {} modules were found", table.len());
    assert_eq!(table["log"], BTreeSet::from(["types", "wire", "sync"]));
    let module = |file: &str| file.split('/').next().unwrap().to_owned();
    let mut wrong = BTreeSet::new();
    for (from, to, what) in tree.imports().into_iter().chain(tree.calls()) {
        let (importing, imported) = (module(&from), module(&to));
        if importing != "lib" && importing != imported && imported != "macros" {
            let is_listed = table.get(&*importing).is_some_and(|may| may.contains(&*imported));
            if !is_listed {
                wrong.insert(format!("{from} may not use {to}: {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn imports_and_calls_contain_no_cycle() {
    let tree = &*TREE;
    let mut after: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (from, to, what) in tree.imports().into_iter().chain(tree.calls()) {
        after.entry(from).or_default().insert(to, what);
    }
    // Remove files that import no remaining file, and files that no remaining file imports: they
    // are in no cycle.
    loop {
        let left: BTreeSet<String> = after.keys().cloned().collect();
        after.values_mut().for_each(|to| to.retain(|file, _| left.contains(file)));
        let imported: BTreeSet<String> = after.values().flat_map(BTreeMap::keys).cloned().collect();
        after.retain(|file, to| !to.is_empty() && imported.contains(file));
        if after.len() == left.len() {
            break;
        }
    }
    let text: Vec<String> = after
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |(to, what)| format!("{from} -> {to}: {what}")))
        .collect();
    assert!(text.is_empty(), "\n{}", text.join("\n"));
}

#[test]
fn methods_of_the_hub_are_in_the_listed_files_only() {
    let tree = &*TREE;
    let has_methods = |source: &Source| METHOD_TYPES.iter().any(|name| source.implemented.contains(*name));
    let found: BTreeSet<&str> =
        tree.0.iter().filter(|(_, source)| has_methods(source)).map(|(file, _)| file.as_str()).collect();
    let listed: BTreeSet<&str> = METHOD_FILES.iter().copied().collect();
    let unlisted: Vec<_> = found.difference(&listed).collect();
    let idle: Vec<_> = listed.difference(&found).collect();
    assert!(unlisted.is_empty(), "not listed: {unlisted:?}");
    assert!(idle.is_empty(), "listed, but without methods of the hub: {idle:?}");
}

#[test]
fn the_parser_finds_imports_calls_and_methods() {
    let source = Source::read(
        "use crate::a::{self, b::C as D, e::*};
         #[cfg(test)] use crate::tests::Only;
         fn f() { g!(super::h::i(1)); hub.call(2); x.other(); let n = m::o; }
         impl<'a> Target<'a> { fn method() {} }
         impl Other { fn another() {} }
         pub(in crate::k) const L: u8 = 0;
         pin_project! { pub struct Pinned { x: u8 } }
         #[cfg(all(test, unix))] mod tests { fn hidden() { crate::p::q(); } }",
    );
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Segments>();
    assert_eq!(
        source.uses,
        [("a".into(), path("crate::a")), ("D".into(), path("crate::a::b::C")), ("*".into(), path("crate::a::e"))]
    );
    assert_eq!(source.paths, BTreeSet::from([path("super::h::i"), path("m::o")]));
    assert!(source.calls == ["call".into()].into() && source.items.contains("f") && source.items.contains("Pinned"));
    assert_eq!((source.methods, source.other_methods), (["method".into()].into(), ["another".into()].into()));
    assert_eq!(rank("hub/tickets/store"), Some((13, "hub/tickets/store")));
    assert_eq!(rank("hub/tickets/redeem"), Some((23, "hub/tickets")));
    let tree = &*TREE;
    let target = |from: &str, text: &str| tree.target(from, &path(text), 8);
    assert_eq!(target("mount/layer", "crate::Hub").as_deref(), Some("hub/inner"), "through two re-exports");
    assert_eq!(target("hub/publish", "super::Target").as_deref(), Some("hub/target"));
    assert_eq!(target("hub/stream/driver", "super::timers::Expiry").as_deref(), Some("hub/stream/timers"));
    assert_eq!(target("hub/publish", "std::sync::Arc"), None);
}

/// A longer median would show that files get more than one purpose.
#[test]
fn the_median_file_is_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    collect(&root, &root, &mut files);
    let mut lines: Vec<usize> = files.values().map(|text| text.lines().count()).collect();
    lines.sort_unstable();
    assert!(lines[lines.len() / 2] <= 200, "median of {} lines", lines[lines.len() / 2]);
}
