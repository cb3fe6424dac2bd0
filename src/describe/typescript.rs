//! The page's module: the types of the events, and a typed function `on`.

use std::any::{TypeId, type_name};
use std::collections::{BTreeMap, HashSet};
use std::num::{NonZeroIsize, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io, process};

use ts_rs::{Config, TS, TypeVisitor};

use super::error::DescribeError;
use super::event_names::EventNames;
use super::hub_events::HUB_EVENTS;
use super::module_text::{HEADER, ON, ON_IN_JAVASCRIPT, TAKEN_NAMES, events_interface, hub_events};
use super::types_text::{content_of_variant, escape_comment_ends, is_identifier, large_integers};
use crate::types::Message;

/// Writes a module for pages, in TypeScript or in JavaScript: the types of the payloads, the names
/// of the events with their payloads, the hub's own events, and a typed function
/// `on(source, name, handler)` over the browser's `EventSource`.
///
/// The types need `#[derive(TS)]` of the crate `ts-rs` 12. The types of their fields are written
/// too. The payload of an event of an enum is the content of its variant.
///
/// ```
/// # #[cfg(feature = "derive")] fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use serde::Serialize;
/// use tower_sse::{Message, TypeScript};
/// use ts_rs::TS;
///
/// #[derive(Serialize, Message, TS)]
/// #[message(event = "document.deleted")]
/// struct DocumentDeleted { id: u32, by: String }
///
/// #[derive(Serialize, Message, TS)]
/// enum Order {
///     #[message(event = "order.paid")]
///     Paid { id: u32, cents: u32 },
///     #[message(event = "order.list.changed")]
///     ListChanged,
/// }
///
/// let module = TypeScript::new().message::<DocumentDeleted>().message::<Order>().to_typescript()?;
/// assert!(module.contains(r#"
/// export interface Events {
///     "document.deleted": DocumentDeleted;
///     "order.paid": OrderPaid;
///     "order.list.changed": null;
/// }"#));
/// assert!(module.contains("export type DocumentDeleted = { id: number, by: string, };"));
/// assert!(module.contains("export function on<"));
/// # Ok(()) }
/// # #[cfg(not(feature = "derive"))] fn main() {}
/// ```
///
/// On the page:
///
/// ```ts
/// import { on } from "./events.js";
///
/// const source = new EventSource("/events");
/// const remove = on(source, "document.deleted", ({ id }) => removeRow(id)); // `id` is a number
/// on(source, "hub.gap", ({ reason }) => fetchDocuments(reason));
/// ```
///
/// A test updates the file, and fails if the file was outdated:
///
/// ```no_run
/// # fn main() -> Result<(), tower_sse::DescribeError> {
/// # use tower_sse::TypeScript;
/// let module = TypeScript::new(); // .message::<DocumentDeleted>() …
/// module.update("web/events.ts")?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// The methods that create the text return an error ([`DescribeError::is_invalid`]) in these cases:
///
/// - A field has an integer of 64 bits or more. `JSON.parse` reads a number above 2⁵³ inexactly,
///   and `ts-rs` would declare the field as `bigint`, which it is not. Send such integers as text,
///   with serde and `#[ts(type = "string")]`. If the integers are never that large, state it with
///   `#[ts(type = "number")]`. The error names the type and the field. For `usize` and `isize`, it
///   names only the type of the field. A map may have such integers as keys, because keys are texts
///   in JSON. A newtype of such an integer is reported also as a key: describe the map with
///   `#[ts(as = "HashMap<u64, T>")]`.
/// - Two types have the same event, or the same name and different fields. `#[ts(rename = "…")]`
///   gives a type another name.
/// - A type has a name that the module itself defines, for example `Events` or `HubGap`, or a name
///   that is not an identifier of TypeScript, for example because of `#[serde(rename = "a-b")]`.
/// - `ts-rs` describes an enum in another form than serde's default, or without a variant.
#[derive(Clone, Debug, Default)]
#[doc(alias = "ts")]
#[doc(alias = "events.ts")]
#[must_use = "this writes nothing until `update` or `write` is called"]
pub struct TypeScript {
    /// The names of the events, and their payloads.
    events: Vec<(&'static str, String)>,
    names: EventNames,
    /// The declarations of the types, by their names.
    declarations: BTreeMap<String, Declaration>,
    /// The declared types.
    visited: HashSet<TypeId>,
    problems: Vec<String>,
}

#[derive(Clone, Debug)]
struct Declaration {
    rust_type: &'static str,
    /// The declaration as `ts-rs` returns it.
    original: String,
    /// The comment and the declaration in the module.
    text: String,
}

impl TypeScript {
    /// Creates a module with only the hub's own events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the events of a type. A type that was added before is not added again.
    pub fn message<M: Message + TS + 'static>(mut self) -> Self {
        if self.names.add::<M>(&mut self.problems) {
            self.add_payloads::<M>();
        }
        self
    }

    fn add_payloads<M: Message + TS + 'static>(&mut self) {
        let config = config();
        if M::VARIANTS.is_empty() {
            // The parameters of a generic type are only in its name.
            let payload = self.exact(&M::name(&config), type_name::<M>());
            self.events.extend(M::EVENTS.iter().map(|event| (*event, payload.clone())));
            self.visit_type::<M>();
            return;
        }
        let (name, union) = (M::ident(&config), escape_comment_ends(&M::inline(&config)));
        for (event, variant) in M::EVENTS.iter().zip(M::VARIANTS) {
            let Some(content) = content_of_variant(&union, variant) else {
                self.problem(format!(
                    "`{}`: `ts-rs` does not describe the variant `{variant}` in serde's default form",
                    type_name::<M>()
                ));
                continue;
            };
            let payload = if content.starts_with('{') {
                let alias = format!("{name}{variant}");
                self.declare(&alias, None, format!("type {alias} = {content};"), type_name::<M>());
                alias
            } else {
                self.exact(content, &format!("{name}::{variant}"))
            };
            self.events.push((event, payload));
        }
        self.visit_fields::<M>(&name);
    }

    fn problem(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Declares a type, if it has a declaration, and then the types of its fields.
    fn visit_type<T: TS + 'static + ?Sized>(&mut self) {
        // A container has no declaration. `visit_generics` visits the types in it.
        if T::output_path().is_none() || !self.visited.insert(TypeId::of::<T>()) {
            return;
        }
        let config = config();
        let name = T::ident(&config);
        self.declare(&name, T::docs(), T::decl(&config), type_name::<T>());
        // Also if the declaration is known: a generic type has one declaration for all its
        // parameters.
        self.visit_fields::<T>(&name);
    }

    fn visit_fields<T: TS + 'static + ?Sized>(&mut self, owner: &str) {
        let mut visitor = Visitor { module: self, sizes: BTreeMap::new() };
        T::visit_dependencies(&mut visitor);
        T::visit_generics(&mut visitor);
        for (integer, _) in visitor.sizes.into_iter().filter(|(_, uses)| *uses > 0) {
            self.problem(inexact_integer(&format!("`{owner}`, a field of the type `{integer}`")));
        }
    }

    fn declare(&mut self, name: &str, docs: Option<String>, original: String, rust_type: &'static str) {
        if let Some(other) = self.declarations.get(name) {
            if other.original != original {
                let two = format!("`{}` and `{rust_type}`", other.rust_type);
                self.problem(format!(
                    "two types have the name `{name}`: {two}. Rename one with `#[ts(rename = \"…\")]`"
                ));
            }
            return;
        }
        if !is_identifier(name) {
            self.problem(format!(
                "`{rust_type}`: the name `{name}` is not an identifier of TypeScript. Rename it with `#[ts(rename = \"…\")]`"
            ));
        }
        if TAKEN_NAMES.contains(&name) || HUB_EVENTS.iter().any(|event| event.type_name == name) {
            self.problem(format!(
                "`{rust_type}`: the module itself has a type with the name `{name}`. Rename yours with `#[ts(rename = \"…\")]`"
            ));
        }
        let text = format!("{}export {original}", docs.unwrap_or_default());
        let text = format!("\n{}\n", self.exact(&escape_comment_ends(&text), name));
        self.declarations.insert(name.to_owned(), Declaration { rust_type, original, text });
    }

    /// Reports the integers in a type that JavaScript cannot read exactly. Returns the type.
    fn exact(&mut self, text: &str, owner: &str) -> String {
        let (exact, fields) = large_integers(text);
        for field in fields {
            let field = if field.is_empty() { String::new() } else { format!(", field `{field}`") };
            self.problem(inexact_integer(&format!("`{owner}`{field}")));
        }
        exact
    }

    /// Returns the module in TypeScript.
    ///
    /// # Errors
    ///
    /// Returns an error if the types would be wrong: see [`TypeScript`].
    pub fn to_typescript(&self) -> Result<String, DescribeError> {
        DescribeError::of(&self.problems)?;
        let declarations = self.declarations.values().map(|declaration| &*declaration.text);
        let events = self.events.iter().map(|(event, payload)| (*event, &**payload));
        let events = events_interface("The payloads of the application's events.", "Events", events);
        Ok([HEADER].into_iter().chain(declarations).chain([&*events, &*hub_events(), ON]).collect())
    }

    /// Returns the module in JavaScript, for pages without a build step. It only has the function
    /// `on`.
    ///
    /// An editor, or `tsc --checkJs`, takes the types from an `events.ts` beside an `events.js`. So
    /// a page in JavaScript is checked too.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`to_typescript`](Self::to_typescript).
    pub fn to_javascript(&self) -> Result<String, DescribeError> {
        DescribeError::of(&self.problems)?;
        Ok([HEADER, ON_IN_JAVASCRIPT].concat())
    }

    /// Writes the module to a file, and returns an error if the file was outdated. Call it in a
    /// test: on the machine of a developer, the next run of the test passes. In CI, the test fails
    /// if the file in the repository is outdated.
    ///
    /// The name of the file ends in `.ts` or `.mts` for TypeScript, or in `.js` or `.mjs` for
    /// JavaScript. The file is replaced at once, so a program that reads it meanwhile gets the old
    /// text or the new one. Folders that do not exist are created. The line ends of the file may be
    /// those of Windows.
    ///
    /// # Errors
    ///
    /// Returns an error in these cases:
    ///
    /// - The file did not exist or had another text ([`DescribeError::is_outdated`]). It has the
    ///   right text now.
    /// - The types would be wrong ([`DescribeError::is_invalid`]). The file is unchanged.
    /// - The file cannot be written, or its name has another ending.
    pub fn update(&self, path: impl AsRef<Path>) -> Result<(), DescribeError> {
        match self.replace(path.as_ref())? {
            None => Ok(()),
            Some(line) => Err(DescribeError::outdated(path.as_ref().to_owned(), line, true)),
        }
    }

    /// Writes the module to a file like [`update`](Self::update), but without an error if the file
    /// was outdated, for example in a command that generates files.
    ///
    /// # Errors
    ///
    /// Returns an error if the types would be wrong ([`DescribeError::is_invalid`]), if the file
    /// cannot be written, or if its name has another ending.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), DescribeError> {
        self.replace(path.as_ref()).map(drop)
    }

    /// Checks that a file has the text that [`update`](Self::update) would write, and writes
    /// nothing.
    ///
    /// # Errors
    ///
    /// Returns an error if the file has another text ([`DescribeError::is_outdated`]), if it cannot
    /// be read, if its name has another ending, or if the types would be wrong
    /// ([`DescribeError::is_invalid`]).
    pub fn check(&self, path: impl AsRef<Path>) -> Result<(), DescribeError> {
        let (path, text) = (path.as_ref(), self.text_for(path.as_ref())?);
        let old = fs::read_to_string(path).map_err(|cause| DescribeError::file(path.to_owned(), cause))?;
        first_difference(&old, &text).map_or(Ok(()), |line| Err(DescribeError::outdated(path.to_owned(), line, false)))
    }

    /// Writes the file if it is outdated. Returns the first line that differed.
    fn replace(&self, path: &Path) -> Result<Option<usize>, DescribeError> {
        let text = self.text_for(path)?;
        // A file that cannot be read does not exist, or is not text.
        let old = fs::read_to_string(path).unwrap_or_default();
        let Some(line) = first_difference(&old, &text) else { return Ok(None) };
        replace_file(path, &text).map_err(|cause| DescribeError::file(path.to_owned(), cause))?;
        Ok(Some(line))
    }

    fn text_for(&self, path: &Path) -> Result<String, DescribeError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_declaration = name.ends_with(".d.ts") || name.ends_with(".d.mts");
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("ts" | "mts") if !is_declaration => self.to_typescript(),
            Some("js" | "mjs") => self.to_javascript(),
            _ => {
                let problem = "the name of the module has to end in `.ts`, `.mts`, `.js` or `.mjs`, and not in `.d.ts`";
                Err(DescribeError::file(path.to_owned(), io::Error::new(io::ErrorKind::InvalidInput, problem)))
            }
        }
    }
}

/// Visits the types of the fields of a type.
struct Visitor<'a> {
    module: &'a mut TypeScript,
    /// The types in [`INEXACT`], and how often they occur other than as the key of a map.
    sizes: BTreeMap<&'static str, i32>,
}

impl TypeVisitor for Visitor<'_> {
    fn visit<T: TS + 'static + ?Sized>(&mut self) {
        if is_inexact::<T>() {
            *self.sizes.entry(type_name::<T>()).or_default() += 1;
        }
        // `ts-rs` also visits the key, before or after the map.
        if let Some(key) = inexact_key::<T>() {
            *self.sizes.entry(key).or_default() -= 1;
        }
        self.module.visit_type::<T>();
    }
}

/// Returns the type of the keys of a map, if it is in [`INEXACT`].
fn inexact_key<T: TS + 'static + ?Sized>() -> Option<&'static str> {
    /// The first parameter that `ts-rs` visits. That of a map is the type of its keys.
    #[derive(Default)]
    struct First(Option<Option<&'static str>>);

    impl TypeVisitor for First {
        fn visit<T: TS + 'static + ?Sized>(&mut self) {
            self.0.get_or_insert_with(|| is_inexact::<T>().then(type_name::<T>));
        }
    }

    if T::output_path().is_some() || !T::name(&config()).starts_with("{ [key in number]") {
        return None;
    }
    let mut first = First::default();
    T::visit_generics(&mut first);
    first.0.flatten()
}

fn is_inexact<T: 'static + ?Sized>() -> bool {
    INEXACT.iter().any(|inexact| inexact() == TypeId::of::<T>())
}

/// The integers that may be too large, and that `ts-rs` nevertheless declares as `number`.
const INEXACT: [fn() -> TypeId; 4] =
    [TypeId::of::<usize>, TypeId::of::<isize>, TypeId::of::<NonZeroUsize>, TypeId::of::<NonZeroIsize>];

/// The defaults, and not the environment: the module is then the same on every machine.
fn config() -> Config {
    Config::default()
}

fn inexact_integer(place: &str) -> String {
    format!(
        "{place}: JavaScript reads an integer of this type inexactly above 2^53. Send it as text, with serde and \
         `#[ts(type = \"string\")]`, or state that it is never that large, with `#[ts(type = \"number\")]`"
    )
}

/// Replaces a file at once: writes a temporary file beside it, and renames that.
fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    // Several tests of a process may write the same file.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut temporary = PathBuf::from(path);
    temporary.as_mut_os_string().push(format!(".{}-{number}.tmp", process::id()));
    let renamed = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        drop(fs::remove_file(&temporary));
    }
    renamed
}

/// Returns the number of the first line that differs.
fn first_difference(old: &str, new: &str) -> Option<usize> {
    let (old_lines, new_lines) = (old.lines(), new.lines());
    let same = old_lines.clone().zip(new_lines.clone()).take_while(|(old, new)| old == new).count();
    (same != old_lines.count() || same != new_lines.count()).then_some(same + 1)
}
