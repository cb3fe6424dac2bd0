//! The building blocks of the format of control messages.
//!
//! A number is a LEB128: seven bits in each byte, the lowest first, and a set high bit in all bytes
//! but the last. A *section* is the length of its content in bytes, as a number, and the content. A
//! reader of a section ignores what follows the fields that it knows. So a later version can add
//! fields at the end of a section.

use std::cell::OnceCell;
use std::collections::hash_map::HashMap;

use crate::types::{ScopeName, Scoped, Topic, UserId};

/// The bytes of a message or of a part of it.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn number(&mut self, mut number: u64) {
        while number > 0x7f {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// Writes eight bytes, the lowest first, for a random number.
    pub(super) fn fixed(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn section(&mut self, content: &[u8]) {
        self.number(content.len() as u64);
        self.bytes.extend_from_slice(content);
    }

    /// Writes a section with the content that the function writes.
    pub(super) fn section_with(&mut self, content: impl FnOnce(&mut Self)) {
        let mut section = Self::default();
        content(&mut section);
        self.section(&section.bytes);
    }
}

/// Reads the bytes of a message or of a section. A method returns `None` if the bytes end before
/// the value, or are not valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has one bit that fits.
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn fixed(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub(super) fn section(&mut self) -> Option<Self> {
        let length = self.number()?;
        self.take(usize::try_from(length).ok()?).map(Self)
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.section()?.0).ok()
    }

    /// Reads a number, and then this number of items. Returns `None` if an item ends too early.
    pub(super) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }
}

/// The names of topics and users that a message contains. Each is written once, and the entries
/// refer to it by its number.
#[derive(Debug, Default)]
pub(super) struct NameWriter<'a> {
    numbers: HashMap<(&'a str, Option<&'a str>), u64>,
    sections: Writer,
}

impl<'a> NameWriter<'a> {
    /// Returns the number of a topic or a user.
    pub(super) fn number(&mut self, name: &'a impl Scoped) -> u64 {
        self.number_of(name.text(), name.scope_name().as_str())
    }

    /// Returns 0 for the root scope, and otherwise the number of the name of the scope plus one.
    pub(super) fn scope(&mut self, scope: &'a ScopeName) -> u64 {
        scope.as_str().map_or(0, |scope| self.number_of(scope, None) + 1)
    }

    fn number_of(&mut self, text: &'a str, scope: Option<&'a str>) -> u64 {
        let next = self.numbers.len() as u64;
        *self.numbers.entry((text, scope)).or_insert_with(|| {
            self.sections.section_with(|section| {
                section.section(scope.unwrap_or_default().as_bytes());
                section.section(text.as_bytes());
            });
            next
        })
    }

    /// Writes the section with all names.
    pub(super) fn write(self, to: &mut Writer) {
        to.section_with(|section| {
            section.number(self.numbers.len() as u64);
            section.bytes.extend_from_slice(&self.sections.bytes);
        });
    }
}

/// The names of a message that is read.
#[derive(Debug)]
pub(super) struct NameReader<'a>(Vec<Name<'a>>);

/// A name. The topic and the user with this name are created when an entry first refers to them.
#[derive(Debug)]
struct Name<'a> {
    /// `None` if this version of the crate cannot read the name.
    text: Option<&'a str>,
    scope: ScopeName,
    /// The scope with this name.
    as_scope: OnceCell<Option<ScopeName>>,
    topic: OnceCell<Option<Topic>>,
    user: OnceCell<Option<UserId>>,
}

impl<'a> NameReader<'a> {
    pub(super) fn read(from: &mut Reader<'a>) -> Option<Self> {
        let names = from.section()?.list(|names| {
            let mut name = names.section()?;
            let scope = name.text().map(|scope| ScopeName::read(Some(scope).filter(|scope| !scope.is_empty())));
            // Without its scope, a name would be another name.
            let (text, scope) = match scope {
                Some(Ok(scope)) => (name.text(), scope),
                Some(Err(_)) | None => (None, ScopeName::ROOT),
            };
            Some(Name { text, scope, as_scope: OnceCell::new(), topic: OnceCell::new(), user: OnceCell::new() })
        })?;
        Some(Self(names))
    }

    fn find(&self, number: u64) -> Option<&Name<'a>> {
        self.0.get(usize::try_from(number).ok()?)
    }

    /// Reads the number of a topic. Returns `None` if the bytes end before it, and `Some(None)` if
    /// this version of the crate cannot read the topic.
    pub(super) fn topic(&self, from: &mut Reader<'_>) -> Option<Option<Topic>> {
        let name = self.find(from.number()?);
        let create = |name: &Name<'a>| Topic::try_from(name.text?).and_then(|topic| topic.placed_in(&name.scope)).ok();
        Some(name.and_then(|name| name.topic.get_or_init(|| create(name)).clone()))
    }

    /// Returns the user with this number, or `None` if this version of the crate cannot read it.
    pub(super) fn user(&self, number: u64) -> Option<UserId> {
        let name = self.find(number)?;
        let create = || UserId::try_from(name.text?).and_then(|user| user.placed_in(&name.scope)).ok();
        name.user.get_or_init(create).clone()
    }

    /// Reads what [`NameWriter::scope`] has returned. Returns `None` if the bytes end before it, or
    /// if this version of the crate cannot read the scope.
    pub(super) fn scope(&self, from: &mut Reader<'_>) -> Option<ScopeName> {
        match from.number()? {
            0 => Some(ScopeName::ROOT),
            number => {
                let name = self.find(number - 1)?;
                name.as_scope.get_or_init(|| ScopeName::named(name.text?).ok()).clone()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn number_is_read_as_it_was_written(number: u64, rest: Vec<u8>) {
            let mut writer = Writer::default();
            writer.number(number);
            prop_assert!(writer.bytes.len() <= 10);
            writer.bytes.extend_from_slice(&rest);
            let mut reader = Reader(&writer.bytes);
            prop_assert_eq!((reader.number(), reader.0), (Some(number), &rest[..]));
        }
    }

    #[test]
    fn number_that_is_cut_or_too_large_is_not_read() {
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        for bytes in [&b""[..], &[0x80], &[0xff; 9], &[0xff; 11], &too_large] {
            assert_eq!(Reader(bytes).number(), None, "{bytes:x?}");
        }
    }

    #[test]
    fn section_that_is_longer_than_the_bytes_is_not_read() {
        assert!(Reader(&[3, b'a', b'b']).section().is_none());
        assert!(Reader(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).section().is_none());
        assert_eq!(Reader(&[2, b'a', b'b']).text(), Some("ab"));
        assert_eq!(Reader(&[1, 0xff]).text(), None);
    }
}
