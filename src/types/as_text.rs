//! serde implementations for types with a text form, which are strings in JSON.

/// Implements `Serialize` with `as_str` or `Display`, and `Deserialize` with `FromStr`.
macro_rules! serde_as_text {
    ($name:ident) => {
        serde_as_text!(@ $name: |value, serializer| serializer.collect_str(value));
    };
    ($name:ident by as_str) => {
        serde_as_text!(@ $name: |value, serializer| serializer.serialize_str(value.as_str()));
    };
    (@ $name:ident: |$value:ident, $serializer:ident| $serialize:expr) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, $serializer: S) -> Result<S::Ok, S::Error> {
                let $value = self;
                $serialize
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use serde_as_text;
