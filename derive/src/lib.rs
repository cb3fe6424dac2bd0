//! The derive macros of tower-sse for typed events. Depend on `tower-sse` with the feature
//! `derive`, which re-exports the macros.

use syn::{DeriveInput, Error, Fields, Result};

mod message;
mod topic;

/// Returns an error if a field has the attribute of a macro, which would have no effect.
fn no_attribute_of_fields(name: &str, fields: &Fields) -> Result<()> {
    let mut attributes = fields.iter().flat_map(|field| &field.attrs);
    match attributes.find(|attribute| attribute.path().is_ident(name)) {
        Some(attribute) => {
            let text = format!("`{name}` belongs to the type or the variant, and not to a field");
            Err(Error::new_spanned(attribute, text))
        }
        None => Ok(()),
    }
}

/// Implements `tower_sse::Message`. The documentation of that trait describes the attributes.
#[proc_macro_derive(Message, attributes(message))]
pub fn message(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    message::expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// Implements `tower_sse::TypedTopic` and `tower_sse::Carries`. The documentation of `TypedTopic`
/// describes the attributes.
#[proc_macro_derive(TypedTopic, attributes(topic))]
pub fn typed_topic(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    topic::expand(&input).unwrap_or_else(Error::into_compile_error).into()
}
