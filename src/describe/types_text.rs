//! Types of TypeScript as text: the content of a variant, integers of any size, and comments.

use std::ops::Range;

/// The type that `ts-rs` writes for integers of 64 bits and more.
const LARGE_INTEGER: &str = "bigint";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// A text in quotes, without the quotes.
    Quoted(&'a str),
    Symbol(char),
}

/// Returns the tokens of a type and their places, without comments and white space.
fn tokens(text: &str) -> Vec<(Token<'_>, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let length_of_word = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
        let (token, length) = if rest.starts_with("/*") {
            (None, rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else if rest.starts_with("//") {
            (None, rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("=>") {
            // Not the end of a list of generic types.
            (None, 2)
        } else if matches!(first, '"' | '\'' | '`') {
            let length = length_of_quoted(rest, first);
            (Some(Token::Quoted(rest[1..length].strip_suffix(first).unwrap_or(&rest[1..length]))), length)
        } else if length_of_word > 0 {
            (Some(Token::Word(&rest[..length_of_word])), length_of_word)
        } else {
            ((!first.is_whitespace()).then_some(Token::Symbol(first)), first.len_utf8())
        };
        found.extend(token.map(|token| (token, at..at + length)));
        at += length;
    }
    found
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Returns whether a text is an identifier.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| is_of_word(first) && !first.is_numeric()) && text.chars().all(is_of_word)
}

/// Escapes `*/` in the comments that `ts-rs` writes. Otherwise the comment would end there.
pub(super) fn escape_comment_ends(text: &str) -> String {
    let mut is_comment = false;
    let lines = text.split('\n').map(|line| {
        match line.trim() {
            "/**" => is_comment = true,
            "*/" => is_comment = false,
            _ if is_comment => return line.replace("*/", "*\\/"),
            _ => {}
        }
        line.to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the length of a text in quotes, with its quotes.
fn length_of_quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = true; // the first quote
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Returns how the depth of nesting changes at a token.
fn step(token: Token<'_>) -> i32 {
    match token {
        Token::Symbol('{' | '[' | '(' | '<') => 1,
        Token::Symbol('}' | ']' | ')' | '>') => -1,
        _ => 0,
    }
}

/// Returns the type of the content of a variant, from the type of an enum in serde's default form:
/// a union with `{ "Variant": content }`, or with `"Variant"` for a variant without content, whose
/// data is `null`. Returns `None` if the type has no such variant.
pub(super) fn content_of_variant<'a>(union: &'a str, variant: &str) -> Option<&'a str> {
    let tokens = tokens(union);
    let mut depth = 0;
    let alternatives = tokens.split(|(token, _)| {
        depth += step(*token);
        depth == 0 && *token == Token::Symbol('|')
    });
    alternatives.into_iter().find_map(|alternative| match alternative {
        [(Token::Quoted(name), _)] if *name == variant => Some("null"),
        [
            (Token::Symbol('{'), _),
            (Token::Quoted(name), _),
            (Token::Symbol(':'), colon),
            content @ ..,
            (Token::Symbol('}'), end),
        ] if *name == variant && is_one_type(content) => Some(union[colon.end..end.start].trim()),
        _ => None,
    })
}

/// Returns whether the tokens are one type: there is no other field after it.
fn is_one_type(tokens: &[(Token<'_>, Range<usize>)]) -> bool {
    let mut depth = 0;
    !tokens.is_empty()
        && tokens.iter().all(|(token, _)| {
            depth += step(*token);
            depth >= 0 && !(depth == 0 && matches!(token, Token::Symbol(',' | ';')))
        })
}

/// Returns the fields with integers that JavaScript cannot read exactly, as paths: `order.id`. The
/// path is empty for a type that is such an integer itself.
///
/// Also returns the type with texts as the keys of maps, in place of such integers and of booleans:
/// a key is a text in JSON, and TypeScript has no such keys.
pub(super) fn large_integers(text: &str) -> (String, Vec<String>) {
    let tokens = tokens(text);
    let (mut exact, mut copied, mut found) = (String::new(), 0, Vec::new());
    let mut path: Vec<Option<&str>> = vec![None];
    for (at, (token, place)) in tokens.iter().enumerate() {
        let before = |distance: usize| at.checked_sub(distance).map(|at| tokens[at].0);
        let is_name = matches!(tokens.get(at + 1), Some((Token::Symbol(':' | '?'), _)));
        match token {
            Token::Symbol('{' | '[' | '(' | '<') => path.push(None),
            Token::Symbol('}' | ']' | ')' | '>') => drop(path.pop()),
            Token::Symbol(',' | ';') => path.iter_mut().last().into_iter().for_each(|key| *key = None),
            Token::Symbol(':') => {
                let name = if before(1) == Some(Token::Symbol('?')) { before(2) } else { before(1) };
                if let (Some(Token::Word(name) | Token::Quoted(name)), Some(key)) = (name, path.last_mut()) {
                    *key = Some(name);
                }
            }
            Token::Word(LARGE_INTEGER | "boolean")
                if before(1) == Some(Token::Word("in")) && before(3) == Some(Token::Symbol('[')) =>
            {
                exact.push_str(&text[copied..place.start]);
                exact.push_str("string");
                copied = place.end;
            }
            Token::Word(LARGE_INTEGER) if !is_name => {
                found.push(path.iter().flatten().copied().collect::<Vec<_>>().join("."));
            }
            _ => {}
        }
    }
    exact.push_str(&text[copied..]);
    (exact, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_a_variant_is_found_in_the_union() {
        let union = r#"{ "Paid": { id: number, note: "}|\"", /** one | } other */ a: A | B, } } | "Gone" | { "List": Array<{ a: 1 } | { "Paid": 2 }> }"#;
        let content = |name| content_of_variant(union, name);
        assert_eq!(content("Paid"), Some(r#"{ id: number, note: "}|\"", /** one | } other */ a: A | B, }"#));
        assert_eq!(content("Gone"), Some("null"));
        assert_eq!(content("List"), Some(r#"Array<{ a: 1 } | { "Paid": 2 }>"#));
        assert_eq!(content("Other"), None);
        assert_eq!(content_of_variant(r#""A""#, "A"), Some("null"));
        assert_eq!(content_of_variant(r#"{ "F": (a: A) => B | C }"#, "F"), Some("(a: A) => B | C"));
    }

    #[test]
    fn other_forms_of_an_enum_have_no_content() {
        for union in [
            r#"{ "type": "Paid", id: number }"#,
            r#"{ "Paid": "Paid", "content": number }"#,
            r#"{ "Paid": { a: 1 } } & { b: 2 }"#,
            r#"{ id: number }"#,
            r#"{ "Paid": }"#,
            "never",
            "",
        ] {
            assert_eq!(content_of_variant(union, "Paid"), None, "{union}");
        }
    }

    #[test]
    fn each_field_with_a_large_integer_is_found() {
        let fields = |text| large_integers(text).1;
        assert_eq!(fields("type Id = bigint;"), [""]);
        let text = r#"type A = { id: bigint, "a-b"?: bigint | null, list: Array<bigint>, deep: { map: { [key in string]: bigint }, }, b: [number, bigint], bigint: "bigint", /** bigint */ c: number, };"#;
        assert_eq!(fields(text), ["id", "a-b", "list", "deep.map", "b"]);
        assert!(fields("type A = { a: number, b: bigints, };").is_empty());
    }

    #[test]
    fn a_large_integer_as_the_key_of_a_map_is_a_text() {
        let (exact, fields) = large_integers("type A = { map: { [key in bigint]: B }, };");
        assert_eq!((&*exact, fields), ("type A = { map: { [key in string]: B }, };", Vec::new()));
        assert_eq!(
            large_integers("{ [key in bigint]?: bigint }"),
            ("{ [key in string]?: bigint }".into(), vec![String::new()])
        );
        let (exact, fields) = large_integers("{ [key in boolean]: boolean }");
        assert_eq!((&*exact, fields), ("{ [key in string]: boolean }", Vec::new()));
    }

    #[test]
    fn the_end_of_a_comment_in_a_comment_is_escaped() {
        let text = "/**\n * a */ b\n */\nexport type A = { \n/**\n * `*/`\n */\na: \"*/\", };";
        let escaped = "/**\n * a *\\/ b\n */\nexport type A = { \n/**\n * `*\\/`\n */\na: \"*/\", };";
        assert_eq!(escape_comment_ends(text), escaped);
    }

    #[test]
    fn an_identifier_has_no_other_characters() {
        for (text, expected) in [("A1", true), ("_a$", true), ("Ä", true), ("a-b", false), ("1a", false), ("", false)]
        {
            assert_eq!(is_identifier(text), expected, "{text}");
        }
    }
}
