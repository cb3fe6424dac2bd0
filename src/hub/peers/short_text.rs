//! Names of users in little memory.

/// The number of bytes of a name that needs no allocation.
const INLINE: usize = 22;

/// The name of a user. It takes 24 bytes, and a longer name in addition its length.
#[derive(Debug)]
pub(super) enum ShortText {
    Inline(u8, [u8; INLINE]),
    Long(Box<str>),
}

impl ShortText {
    pub(super) fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE];
        match bytes.get_mut(..text.len()) {
            Some(start) => {
                start.copy_from_slice(text.as_bytes());
                Self::Inline(text.len() as u8, bytes)
            }
            None => Self::Long(text.into()),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            // The bytes were copied from a text.
            Self::Inline(len, bytes) => std::str::from_utf8(&bytes[..usize::from(*len)]).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }

    /// Returns the allocated memory in bytes, without the size of the value itself.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn allocated(&self) -> usize {
        match self {
            Self::Inline(..) => 0,
            Self::Long(text) => text.len(),
        }
    }
}

impl Default for ShortText {
    fn default() -> Self {
        Self::Inline(0, [0; INLINE])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_is_the_text_at_every_length() {
        for len in 0..60 {
            let text = "a".repeat(len.min(1)) + &"ä".repeat(len);
            let short = ShortText::new(&text);
            assert_eq!(short.as_str(), text);
            assert_eq!(short.allocated(), if text.len() > INLINE { text.len() } else { 0 });
        }
        assert_eq!(size_of::<ShortText>(), 24);
    }
}
