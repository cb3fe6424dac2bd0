//! The derive macros of tower-sse for typed events. Depend on `tower-sse` with the feature `derive`,
//! which re-exports the macros.

use syn::{DeriveInput, Error};

mod message;
mod topic;

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
