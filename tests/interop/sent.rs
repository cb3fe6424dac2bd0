//! The published events, and the events that a client must deliver. The expectations follow the
//! standard and not the encoder of the hub.

use crate::case::Case;

/// An event and its case.
pub struct Sample {
    pub case: Case,
    /// The name, or empty for an unnamed event.
    pub name: &'static str,
    pub data: &'static str,
    /// The data that a client must deliver.
    pub seen: &'static str,
}

const fn same(case: Case, name: &'static str, data: &'static str) -> Sample {
    Sample { case, name, data, seen: data }
}

pub const SAMPLES: &[Sample] = &[
    same(Case::Names, "", "no name"),
    same(Case::Names, "note", "a name"),
    same(Case::Names, "note: of 1st", "a name with a colon"),
    same(Case::Names, "", "no name again"),
    same(Case::Lines, "", "one\ntwo\n\nfour"),
    Sample { case: Case::Lines, name: "", data: "one\rtwo\r\nthree", seen: "one\ntwo\nthree" },
    same(Case::Lines, "", "\nthe first is empty"),
    same(Case::Lines, "", "the last is empty\n"),
    same(Case::Lines, "note", "\n\n"),
    same(Case::Spaces, "", " one"),
    same(Case::Spaces, "", "   three, and behind  "),
    same(Case::Spaces, "", "\ttab\t"),
    same(Case::Spaces, "", "data: data: x"),
    same(Case::Spaces, "", ": no comment"),
    same(Case::Spaces, "", ":\nid: 7\n\nretry: 1"),
    same(Case::Empty, "", ""),
    same(Case::Empty, "note", ""),
    same(Case::Unicode, "", "😀 𝒳 e\u{301} 漢字 שלום 👩‍👩‍👧"),
    same(Case::Unicode, "größe", "é ≠ e\u{301}"),
    same(Case::Separators, "", "a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\u{1c}g"),
    same(Case::Bom, "", "\u{feff}marked"),
];

/// Every name for which a client needs a listener.
pub const NAMES: &[&str] =
    &["note", "note: of 1st", "größe", "end", "hub.hello", "hub.live", "hub.gap", "hub.refused", "hub.bye"];
