//! The page's module: `tsc` accepts it, real events have its types, and its function runs.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::Serialize;
use tower_sse::{Message, TypeScript};
use ts_rs::TS;

use crate::messages::module;
use crate::node::Node;
use crate::sent::sent;

/// A page with each use of the module. Each line after `@ts-expect-error` has an error, and `tsc`
/// fails if it does not.
const PAGE: &str = r#"
import { on, type AllEvents, type DocumentDeleted, type Events, type HubEvents, type Method } from "./events.js";

const source = new EventSource("/events");
const remove: () => void = on(source, "document.deleted", (payload, event) => {
    const id: number = payload.id;
    const by: string = payload.deletedBy;
    const note: string | null = payload.note;
    const lastId: string = event.lastEventId;
    console.log(id, by, note, lastId);
    // @ts-expect-error: the field has another name on the wire
    payload.deleted_by;
    // @ts-expect-error: a number is no text
    const text: string = payload.id;
});
remove();
on(source, "document.deleted", ({ id }) => console.log(id));
on(source, "order.paid", ({ orderId, cents, method }) => {
    const days: number = method === "card" ? 0 : method.invoice.days;
    console.log(orderId + cents + days);
});
on(source, "order.shipped", ({ carrier, weights, barcode, at }) => {
    const exact: string = barcode;
    const date = new Date(at);
    const weight: number | undefined = weights["18446744073709551615"];
    console.log(carrier.trim(), exact, date, weight);
});
on(source, "order.split", ([first, second]) => console.log(first + second));
on(source, "order.list.changed", payload => { const nothing: null = payload; });
on(source, "order.nested", order => {
    if (order !== null && typeof order === "object" && "Paid" in order) console.log(order.Paid.cents);
});
on(source, "page", ({ items, more }) => console.log(items.map(parcel => parcel.carrier), more));
on(source, "words \"quoted\"", words => console.log(words.join()));
on(source, "ping", payload => { const nothing: null = payload; });

on(source, "hub.hello", ({ connection, cursor, topics, instance }) => {
    if (cursor === "resuming") console.log(connection.length, topics.length, instance?.length);
    // @ts-expect-error: no such word
    if (cursor === "resumed") console.log();
    // @ts-expect-error: the name may be missing
    instance.length;
});
on(source, "hub.live", ({ topics }) => console.log(topics ?? []));
on(source, "hub.gap", ({ reason, topics }) => {
    // Later versions may have other reasons.
    if (reason === "trimmed" || reason === "of another version") console.log(topics);
});
on(source, "hub.refused", ({ reason, retry_ms }) => console.log(reason, retry_ms + 1));
on(source, "hub.stale", () => console.log());
on(source, "hub.expiring", ({ in_ms }) => console.log(in_ms + 1));
on(source, "hub.joined", ({ topic, user, data }) => {
    console.log(topic.length, user.length);
    // @ts-expect-error: the data may be anything
    data.role;
});
on(source, "hub.left", ({ topic, user }) => console.log(topic.length, user.length));
on(source, "hub.bye", ({ reconnect, note }) => { if (reconnect === "never") console.log(note); });

// @ts-expect-error: no such event
on(source, "document.removed", () => {});
// @ts-expect-error: no such event of the hub
on(source, "hub.hallo", () => {});
// @ts-expect-error: a source has to have listeners
on({}, "ping", () => {});

// Events can also be created, for example in the tests of a page.
const example: DocumentDeleted = { id: 7, deletedBy: "ben", note: null };
const method: Method = { invoice: { days: 30 } };
const names: (keyof Events | keyof HubEvents)[] = ["ping", "hub.bye"];
const any: AllEvents["order.split"] = [1, 2];
// @ts-expect-error: a field is missing
const incomplete: DocumentDeleted = { id: 7, note: null };
export { example, method, names, any };
"#;

#[test]
fn tsc_accepts_the_module_and_rejects_wrong_uses() {
    let Some(node) = Node::in_folder("page") else { return };
    module().write(node.path("events.ts")).unwrap();
    node.write("page.ts", PAGE);
    let strict = ["--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--isolatedModules", "--noEmit"];
    assert_eq!(node.tsc(&[&["page.ts", "events.ts"], &strict[..]].concat()), "");
    // The options are in effect, and so is the check.
    node.write("page.ts", &PAGE.replace("payload.id;\n    const by", "payload.nr;\n    const by"));
    assert!(node.tsc(&["page.ts", "--noEmit"]).contains("'nr'"));
}

#[test]
fn tsc_accepts_a_module_without_messages() {
    let Some(node) = Node::in_folder("empty") else { return };
    TypeScript::new().write(node.path("events.ts")).unwrap();
    node.write("page.ts", "import { on } from './events.js'; on(new EventSource('/'), 'hub.live', () => {});");
    assert_eq!(node.tsc(&["page.ts", "--noEmit"]), "");
}

/// A payload in the source of a program must have exactly the fields of its type.
#[tokio::test]
async fn real_events_have_the_types_of_the_module() {
    let sent = sent().await;
    let names: BTreeSet<&str> = sent.iter().map(|event| &*event.event).collect();
    let text = module().to_typescript().unwrap();
    for line in text.lines().filter_map(|line| line.strip_prefix("    \"")) {
        let name = line.rsplit_once("\": ").unwrap().0.replace("\\\"", "\"");
        assert!(names.contains(&*name) || name == "hub.stale", "{name} was not sent");
    }

    let Some(node) = Node::in_folder("sent") else { return };
    node.write("events.ts", &text);
    let mut page = "import type { AllEvents } from './events.js';\n".to_owned();
    for (number, event) in sent.iter().enumerate() {
        let name = serde_json::to_string(&event.event).unwrap();
        writeln!(page, "export const event{number}: AllEvents[{name}] = {};", event.data).unwrap();
    }
    node.write("page.ts", &page);
    assert_eq!(node.tsc(&["page.ts", "--noEmit", "--exactOptionalPropertyTypes"]), "");
}

const SCRIPT: &str = r#"
import { on } from "./events.js";

class Message extends Event {
    constructor(name, data) { super(name); this.data = data; }
}
const source = new EventTarget();
const seen = [], uncaught = [];
process.on("uncaughtException", error => uncaught.push(`${error.name}: ${error.message}`));
const remove = on(source, "document.deleted", (payload, event) => seen.push([payload, event.type]));
on(source, "document.deleted", () => seen.push("second"));
on(source, "hub.gap", ({ topics }) => seen.push(topics));
source.dispatchEvent(new Message("document.deleted", '{"id":7}'));
source.dispatchEvent(new Message("hub.gap", '{"reason":"trimmed","topics":["a"]}'));
source.dispatchEvent(new Message("document.deleted", "no JSON"));
remove();
source.dispatchEvent(new Message("document.deleted", "null"));
setTimeout(() => console.log(JSON.stringify([seen, uncaught])));
"#;

#[test]
fn the_module_calls_handlers_until_they_are_removed() {
    let Some(node) = Node::in_folder("script") else { return };
    node.write("script.js", SCRIPT);
    let error = "SyntaxError: the data of the event document.deleted is not JSON: no JSON";
    let expected =
        format!("[[[{{\"id\":7}},\"document.deleted\"],\"second\",[\"a\"],\"second\"],[\"{error}\",\"{error}\"]]\n");
    module().write(node.path("events.js")).unwrap();
    assert_eq!(node.run("script.js").unwrap(), expected, "the module in JavaScript");
    std::fs::remove_file(node.path("events.js")).unwrap();
    module().write(node.path("events.ts")).unwrap();
    assert_eq!(node.tsc(&["events.ts"]), "");
    assert_eq!(node.run("script.js").unwrap(), expected, "the module in TypeScript, compiled");
}

/// Otherwise a page with a build step would behave differently.
#[test]
fn the_module_in_javascript_is_the_compiled_one() {
    let Some(node) = Node::in_folder("compiled") else { return };
    module().write(node.path("events.ts")).unwrap();
    assert_eq!(node.tsc(&["events.ts"]), "");
    let code = |text: &str| {
        let is_comment = |line: &str| ["//", "/*", "*"].iter().any(|start| line.trim_start().starts_with(start));
        text.lines().filter(|line| !is_comment(line) && !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let compiled = std::fs::read_to_string(node.path("events.js")).unwrap();
    assert_eq!(code(&compiled), code(&module().to_javascript().unwrap()));
}

#[test]
fn a_page_in_javascript_is_checked_with_the_types() {
    let Some(node) = Node::in_folder("javascript") else { return };
    module().write(node.path("events.ts")).unwrap();
    module().write(node.path("events.js")).unwrap();
    let check = |text: &str| {
        node.write("page.js", text);
        node.tsc(&["page.js", "--allowJs", "--checkJs", "--noEmit"])
    };
    let page = "import { on } from './events.js'; on(new EventSource('/'), 'document.deleted', e => e.id.toFixed());";
    assert_eq!(check(page), "");
    assert!(check(&page.replace("e.id", "e.nr")).contains("'nr'"));
    assert!(check(&page.replace("document.deleted", "document.removed")).contains("document.removed"));
}

#[test]
fn a_file_is_current_or_outdated() {
    let folder = std::env::temp_dir().join(format!("tower-sse-module-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (path, javascript) = (folder.join("events.ts"), folder.join("events.js"));
    let error = module().check(&path).unwrap_err();
    assert!(!error.is_outdated() && !error.is_invalid() && std::error::Error::source(&error).is_some(), "{error}");
    module().write(&path).unwrap();
    module().check(&path).unwrap();
    module().write(&javascript).unwrap();
    module().check(&javascript).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, module().to_typescript().unwrap());
    assert_eq!(std::fs::read_to_string(&javascript).unwrap(), module().to_javascript().unwrap());

    std::fs::write(&path, text.replace('\n', "\r\n")).unwrap();
    module().check(&path).unwrap();
    for outdated in [text.replacen("id: number", "id: string", 1), text.clone() + "\n", text[..text.len() / 2].into()] {
        std::fs::write(&path, outdated).unwrap();
        assert!(module().check(&path).unwrap_err().is_outdated());
    }
    module().write(&path).unwrap();
    module().check(&path).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn update_writes_an_outdated_file_and_returns_an_error() {
    let folder = std::env::temp_dir().join(format!("tower-sse-update-{}", std::process::id()));
    let path = folder.join("a/events.ts");
    for text in [None, Some("old"), Some("")] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let error = module().update(&path).unwrap_err();
        assert!(error.is_outdated(), "{error}");
        assert_eq!(error.to_string(), format!("{} was outdated from line 1 on, and has been written", path.display()));
        module().check(&path).unwrap();
        module().update(&path).unwrap();
    }
    // No temporary file is left.
    assert_eq!(std::fs::read_dir(folder.join("a")).unwrap().count(), 1);
    std::fs::create_dir_all(folder.join("folder.ts")).unwrap();
    let error = module().update(folder.join("folder.ts")).unwrap_err();
    assert!(!error.is_outdated() && !error.is_invalid(), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_file_that_is_no_module_is_rejected() {
    for name in ["events.cjs", "events.d.ts", "events.d.mts", "events.json", "events"] {
        let path = std::env::temp_dir().join(name);
        let error = module().write(&path).unwrap_err();
        assert!(error.to_string().contains("has to end in `.ts`"), "{error}");
        assert!(!path.exists() && module().check(&path).is_err() && module().update(&path).is_err());
    }
}

/// The guide lists these attributes of serde, which `ts-rs` does not read, with their counterparts.
#[test]
fn attributes_that_ts_rs_does_not_read_have_counterparts() {
    mod as_text {
        pub(super) fn serialize<S: serde::Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(number)
        }
    }
    #[derive(Serialize, Message, TS)]
    #[message(event = "attributes")]
    #[serde(rename_all(serialize = "camelCase"))]
    #[ts(rename_all = "camelCase")]
    struct Attributes {
        #[serde(serialize_with = "as_text::serialize")]
        #[ts(type = "string")]
        serialized_with: u64,
        #[serde(skip_serializing)]
        #[ts(skip)]
        #[allow(dead_code, reason = "it is skipped")]
        skipped: u8,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[ts(optional)]
        only_if: Option<u8>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        with_default: Option<u8>,
        #[serde(rename(serialize = "other"))]
        #[ts(rename = "other")]
        renamed: u8,
        transparent: Transparent,
    }
    #[derive(Serialize, TS)]
    #[serde(transparent)]
    #[ts(as = "String")]
    struct Transparent {
        text: String,
    }
    let value = |only_if| Attributes {
        serialized_with: u64::MAX,
        skipped: 1,
        only_if,
        with_default: only_if,
        renamed: 1,
        transparent: Transparent { text: "a".into() },
    };

    let Some(node) = Node::in_folder("attributes") else { return };
    TypeScript::new().message::<Attributes>().write(node.path("events.ts")).unwrap();
    let json = |value| serde_json::to_string(&value).unwrap();
    let page = format!(
        "import type {{ Attributes }} from './events.js'; export const all: Attributes[] = [{}, {}];",
        json(value(None)),
        json(value(Some(2)))
    );
    node.write("page.ts", &page);
    assert_eq!(node.tsc(&["page.ts", "--noEmit", "--exactOptionalPropertyTypes"]), "");
}
