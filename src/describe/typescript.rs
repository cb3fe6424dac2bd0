//! The page's module: the types of the events, and a typed function `on`.

use std::any::{TypeId, type_name};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::num::{NonZeroIsize, NonZeroUsize};
use std::path::Path;

use ts_rs::{Config, TS, TypeVisitor};

use super::error::DescribeError;
use super::event_names::EventNames;
use super::hub_events::HUB_EVENTS;
use super::module_text::{HEADER, ON, ON_IN_JAVASCRIPT, TAKEN_NAMES, events_interface, hub_events};
use super::types_text::{content_of_variant, large_integers};
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
/// A test writes the file on the machine of a developer. In CI it fails if the file in the
/// repository is outdated:
///
/// ```no_run
/// # fn main() -> Result<(), tower_sse::DescribeError> {
/// # use tower_sse::TypeScript;
/// let module = TypeScript::new(); // .message::<DocumentDeleted>() …
/// if std::env::var_os("CI").is_some() {
///     module.check("web/events.ts")?;
/// } else {
///     module.write("web/events.ts")?;
/// }
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
///   `#[ts(type = "number")]`. The keys of maps are texts in JSON, so they may have any size.
/// - Two types have the same event, or the same name and different fields. `#[ts(rename = "…")]`
///   gives a type another name.
/// - A type has the name of one in the rest of the module, for example `Events` or `HubGap`.
/// - `ts-rs` describes an enum in another form than serde's default, or without a variant.
#[derive(Clone, Debug, Default)]
#[doc(alias = "ts")]
#[doc(alias = "events.ts")]
#[must_use = "this writes nothing until `write` is called"]
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
            self.visit_type::<M>(type_name::<M>());
            return;
        }
        let (name, union) = (M::ident(&config), M::inline(&config));
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
    fn visit_type<T: TS + 'static + ?Sized>(&mut self, owner: &str) {
        if INEXACT.iter().any(|inexact| inexact() == TypeId::of::<T>()) {
            self.problem(inexact_integer(&format!("`{owner}`, a field of the type `{}`", type_name::<T>())));
        }
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
        let mut visitor = Visitor { module: self, owner: owner.to_owned() };
        T::visit_dependencies(&mut visitor);
        T::visit_generics(&mut visitor);
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
        if TAKEN_NAMES.contains(&name) || HUB_EVENTS.iter().any(|event| event.type_name == name) {
            self.problem(format!(
                "`{rust_type}`: the module itself has a type with the name `{name}`. Rename yours with `#[ts(rename = \"…\")]`"
            ));
        }
        let text = format!("\n{}export {}\n", docs.unwrap_or_default(), self.exact(&original, name));
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

    /// Writes the module to a file, if the file does not have this text already. The module is in
    /// JavaScript if the name ends in `.js` or `.mjs`, and in TypeScript otherwise.
    ///
    /// Call it in a test or in a command, and not in a server: it blocks the thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the types would be wrong ([`DescribeError::is_invalid`]), or if the file
    /// cannot be written. The folder of the file must exist.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), DescribeError> {
        let (path, text) = (path.as_ref(), self.text_for(path.as_ref())?);
        if fs::read_to_string(path).is_ok_and(|old| first_difference(&old, &text).is_none()) {
            return Ok(());
        }
        fs::write(path, text).map_err(|cause| DescribeError::file(path.to_owned(), cause))
    }

    /// Checks that a file has the text that [`write`](Self::write) would write. The line ends may
    /// be those of Windows.
    ///
    /// # Errors
    ///
    /// Returns an error if the file has another text ([`DescribeError::is_outdated`]), if it cannot
    /// be read, or if the types would be wrong ([`DescribeError::is_invalid`]).
    pub fn check(&self, path: impl AsRef<Path>) -> Result<(), DescribeError> {
        let (path, text) = (path.as_ref(), self.text_for(path.as_ref())?);
        let old = fs::read_to_string(path).map_err(|cause| DescribeError::file(path.to_owned(), cause))?;
        first_difference(&old, &text).map_or(Ok(()), |line| Err(DescribeError::outdated(path.to_owned(), line)))
    }

    fn text_for(&self, path: &Path) -> Result<String, DescribeError> {
        let is_javascript = path.extension().is_some_and(|ending| ending == "js" || ending == "mjs");
        if is_javascript { self.to_javascript() } else { self.to_typescript() }
    }
}

/// Visits the types of the fields of a type.
struct Visitor<'a> {
    module: &'a mut TypeScript,
    owner: String,
}

impl TypeVisitor for Visitor<'_> {
    fn visit<T: TS + 'static + ?Sized>(&mut self) {
        self.module.visit_type::<T>(&self.owner);
    }
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

/// Returns the number of the first line that differs.
fn first_difference(old: &str, new: &str) -> Option<usize> {
    let (old_lines, new_lines) = (old.lines(), new.lines());
    let same = old_lines.clone().zip(new_lines.clone()).take_while(|(old, new)| old == new).count();
    (same != old_lines.count() || same != new_lines.count()).then_some(same + 1)
}
