//! Types whose description would be wrong.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use tower_sse::{DescribeError, Message, TypeScript};
use ts_rs::TS;

use crate::messages::Page;

macro_rules! messages {
    ($($(#[$attribute:meta])* $name:ident($event:literal) { $($(#[$field_attribute:meta])* $field:ident: $type:ty),* })*) => {
        $(
            #[derive(Serialize, Message, TS)]
            #[message(event = $event)]
            $(#[$attribute])*
            #[allow(dead_code, reason = "only its description is used")]
            pub(super) struct $name { $($(#[$field_attribute])* $field: $type),* }
        )*
    };
}

/// Returns the lines of the error.
fn problems(module: &TypeScript) -> Vec<String> {
    let error: DescribeError = module.to_typescript().unwrap_err();
    assert!(error.is_invalid() && !error.is_outdated());
    assert_eq!(module.to_javascript().unwrap_err().to_string(), error.to_string());
    assert!(module.write("/not/written.ts").unwrap_err().is_invalid());
    error.to_string().lines().map(str::to_owned).collect()
}

/// Returns the places before the explanation of an inexact integer.
fn inexact(module: &TypeScript) -> Vec<String> {
    let explanation = ": JavaScript reads an integer of this type inexactly above 2^53. Send it as text";
    problems(module).iter().map(|line| line.split_once(explanation).expect(line).0.to_owned()).collect()
}

#[test]
fn integers_that_javascript_reads_inexactly_are_reported_with_their_fields() {
    messages! {
        Large("large") { a: u64, b: Option<i64>, c: Vec<(u8, u128)>, d: HashMap<String, Nested>, e: u32 }
        Sizes("sizes") { a: usize, b: Vec<isize> }
        #[serde(rename_all = "camelCase")]
        Renamed("renamed") { last_id: i128 }
    }
    #[derive(Serialize, TS)]
    struct Nested {
        n: std::num::NonZeroU64,
    }
    #[derive(Serialize, Message, TS)]
    #[allow(dead_code, reason = "only its description is used")]
    enum Order {
        #[message(event = "order.paid")]
        Paid { id: u64 },
        #[message(event = "order.gone")]
        Gone(u64),
        #[message(event = "order.size")]
        Size(Vec<usize>),
    }

    let large = inexact(&TypeScript::new().message::<Large>());
    assert_eq!(large, ["`Large`, field `a`", "`Large`, field `b`", "`Large`, field `c`", "`Nested`, field `n`"]);
    let mut sizes = inexact(&TypeScript::new().message::<Sizes>());
    sizes.sort();
    assert_eq!(sizes, ["`Sizes`, a field of the type `isize`", "`Sizes`, a field of the type `usize`"]);
    assert_eq!(inexact(&TypeScript::new().message::<Renamed>()), ["`Renamed`, field `lastId`"]);
    let order = inexact(&TypeScript::new().message::<Order>());
    assert_eq!(order, ["`OrderPaid`, field `id`", "`Order::Gone`", "`Order`, a field of the type `usize`"]);
    let page = TypeScript::new().message::<Page<u64>>();
    assert_eq!(inexact(&page), ["`describe::messages::Page<u64>`"]);
}

#[test]
fn an_integer_with_an_explicit_type_and_the_key_of_a_map_are_not_reported() {
    messages! {
        Stated("stated") {
            #[ts(type = "number")] a: u64,
            #[ts(as = "u32")] b: usize,
            c: HashMap<u64, u8>,
            d: u32,
            e: Vec<HashMap<usize, HashMap<u8, u32>>>,
            f: HashMap<bool, bool>,
            #[ts(as = "HashMap<u64, u8>")] g: HashMap<Id, u8>
        }
        Sizes("sizes") { a: Page<HashMap<isize, u8>>, b: BTreeMap<usize, BTreeMap<usize, u8>>, c: HashMap<u8, u8> }
    }
    #[derive(Serialize, TS, PartialEq, Eq, Hash)]
    struct Id(u64);
    let text = TypeScript::new().message::<Stated>().to_typescript().unwrap();
    let declaration = "export type Stated = { a: number, b: number, c: { [key in string]: number }, d: number, \
        e: Array<{ [key in number]: { [key in number]: number } }>, f: { [key in string]: boolean }, \
        g: { [key in string]: number }, };";
    assert!(text.contains(declaration), "{text}");
    TypeScript::new().message::<Sizes>().to_typescript().unwrap();
}

#[test]
fn an_integer_that_is_also_the_key_of_a_map_is_reported() {
    messages! {
        Value("value") { a: HashMap<usize, usize> }
        Field("field") { a: HashMap<usize, u8>, b: usize }
        Nested("nested") { a: HashMap<usize, HashMap<u8, usize>> }
        Key("key") { a: HashMap<Id, u8> }
    }
    #[derive(Serialize, TS, PartialEq, Eq, Hash)]
    struct Id(u64);
    for (module, place) in [
        (TypeScript::new().message::<Value>(), "`Value`, a field of the type `usize`"),
        (TypeScript::new().message::<Field>(), "`Field`, a field of the type `usize`"),
        (TypeScript::new().message::<Nested>(), "`Nested`, a field of the type `usize`"),
        // The declaration of the type cannot be exact for both uses.
        (TypeScript::new().message::<Key>(), "`Id`"),
    ] {
        assert_eq!(inexact(&module), [place]);
    }
}

#[test]
fn two_types_with_one_event_are_reported() {
    messages! {
        First("same") { a: u8 }
        Second("same") { b: u8 }
    }
    let module = TypeScript::new().message::<First>().message::<Second>();
    let [problem] = &problems(&module)[..] else { panic!("{:?}", problems(&module)) };
    assert!(problem.starts_with("two types have the event `same`: `describe::"), "{problem}");
    let twice = TypeScript::new().message::<First>().message::<First>().to_typescript().unwrap();
    assert_eq!(twice, TypeScript::new().message::<First>().to_typescript().unwrap());
}

/// Rust gives both types the same name.
#[test]
fn two_types_of_one_function_with_one_event_are_reported() {
    let module = {
        messages! { Same("same") { a: u8 } }
        TypeScript::new().message::<Same>()
    };
    messages! { Same("same") { a: u8 } }
    let problems = problems(&module.message::<Same>());
    assert!(problems.len() == 1 && problems[0].starts_with("two types have the event `same`"), "{problems:?}");
}

#[test]
fn a_name_that_is_no_identifier_is_reported() {
    messages! {
        #[serde(rename = "a-b")]
        Renamed("renamed") { a: u8 }
    }
    let problems = problems(&TypeScript::new().message::<Renamed>());
    assert!(problems.len() == 1 && problems[0].contains("the name `a-b` is not an identifier"), "{problems:?}");
}

/// A test that returns the error, or unwraps it, prints `Debug`.
#[test]
fn debug_writes_each_problem_on_a_line() {
    messages! { Large("large") { a: u64, b: u64 } }
    let error = TypeScript::new().message::<Large>().to_typescript().unwrap_err();
    assert_eq!(format!("{error:?}"), error.to_string());
    assert_eq!(error.to_string().lines().count(), 2);
}

#[test]
fn two_types_with_one_name_are_reported_if_they_differ() {
    mod other {
        use super::*;

        messages! {
            Item("other.item") { b: u8 }
            Same("other.same") { a: u8 }
        }
    }
    messages! {
        Item("item") { a: u8 }
        Same("same") { a: u8 }
        #[ts(rename = "MyItem")]
        RenamedItem("renamed") { c: u8 }
        #[ts(rename = "HubGap")]
        Gap("gap") { c: u8 }
        Events("events") { c: u8 }
    }
    let one = |module: &TypeScript, start: &str| {
        let problems = problems(module);
        assert!(problems.len() == 1 && problems[0].starts_with(start), "{problems:?}");
    };
    one(&TypeScript::new().message::<Item>().message::<other::Item>(), "two types have the name `Item`: `describe::");
    TypeScript::new().message::<Same>().message::<other::Same>().message::<RenamedItem>().to_typescript().unwrap();
    let taken = |problem: &str| problem.contains("the module itself has a type with the name");
    assert!(problems(&TypeScript::new().message::<Gap>().message::<Events>()).iter().all(|problem| taken(problem)));
}

/// A generic type has one declaration, and its parameters have their own.
#[test]
fn each_parameter_of_a_generic_type_is_declared() {
    messages! {
        First("first") { a: Page<A> }
        Second("second") { b: Page<B> }
        Third("third") { b: Page<u64> }
    }
    #[derive(Serialize, TS)]
    struct A;
    #[derive(Serialize, TS)]
    struct B(u8);
    let module = TypeScript::new().message::<First>().message::<Second>();
    let text = module.to_typescript().unwrap();
    for declaration in ["type A = null;", "type B = number;", "type Page<T> = { items: Array<T>, more: boolean, };"] {
        assert_eq!(text.matches(declaration).count(), 1, "{declaration}: {text}");
    }
    assert_eq!(inexact(&module.message::<Third>()), ["`Third`, field `b`"]);
}

#[test]
fn an_enum_that_ts_rs_describes_in_another_form_is_reported() {
    #[derive(Serialize, Message, TS)]
    #[ts(tag = "kind")]
    #[allow(dead_code, reason = "only its description is used")]
    enum Tagged {
        #[message(event = "tagged")]
        Tagged { id: u8 },
    }
    #[derive(Serialize, Message, TS)]
    #[allow(dead_code, reason = "only its description is used")]
    enum Renamed {
        #[message(event = "a")]
        #[ts(rename = "b")]
        A,
        #[message(event = "c")]
        #[ts(skip)]
        C,
    }
    let problems = problems(&TypeScript::new().message::<Tagged>().message::<Renamed>());
    let ends = ["`Tagged` in serde's default form", "`A` in serde's default form", "`C` in serde's default form"];
    assert!(problems.iter().zip(ends).all(|(problem, end)| problem.ends_with(end)), "{problems:?}");
    assert_eq!(problems.len(), ends.len());
}

/// A type that implements the trait by hand, with a name that no event may have.
#[derive(Serialize, TS)]
struct ByHand(u8);

impl Message for ByHand {
    const EVENTS: &'static [&'static str] = &["hub.by.hand"];

    fn event(&self) -> &'static str {
        "hub.by.hand"
    }
}

#[test]
fn an_invalid_name_of_an_event_is_reported() {
    let problems = problems(&TypeScript::new().message::<ByHand>());
    assert!(problems.len() == 1 && problems[0].contains("the event name `hub.by.hand` is invalid"), "{problems:?}");
}
