//! `#[derive(Message)]`.

use std::collections::HashSet;

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Fields, Index, LitStr, Member, Meta, Result, Token, parse_quote};

/// One event of the type: the struct, or a variant of the enum.
struct Event<'a> {
    /// The pattern that matches a value of this event, up to the braces.
    pattern: TokenStream,
    name: LitStr,
    key: Option<Member>,
    /// The name of the variant.
    variant: Option<&'a syn::Ident>,
}

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let events = match &input.data {
        Data::Struct(data) => vec![event(quote!(Self), input.span(), &input.attrs, &data.fields, None)?],
        Data::Enum(data) => {
            if let Some(attribute) = message_attribute(&input.attrs) {
                return Err(Error::new_spanned(attribute, "an enum has its events at its variants"));
            }
            check_serde(&input.attrs)?;
            let variants = data.variants.iter().map(|variant| {
                check_serde(&variant.attrs)?;
                let name = &variant.ident;
                event(quote!(Self::#name), variant.span(), &variant.attrs, &variant.fields, Some(name))
            });
            variants.collect::<Result<_>>()?
        }
        Data::Union(data) => return Err(Error::new_spanned(data.union_token, "a union cannot be a message")),
    };
    if events.is_empty() {
        return Err(Error::new_spanned(&input.ident, "an enum without variants has no event"));
    }
    let mut names = HashSet::new();
    if let Some(twice) = events.iter().find(|event| !names.insert(event.name.value())) {
        return Err(Error::new_spanned(&twice.name, "another variant has this event"));
    }

    let checks = events.iter().map(|Event { name, .. }| {
        quote_spanned!(name.span()=> const _: () = ::tower_sse::__private::check_event_name(#name);)
    });
    let names = events.iter().map(|event| &event.name);
    let name_arms = events.iter().map(|Event { pattern, name, .. }| quote!(#pattern { .. } => #name,));
    let key_arms = events.iter().map(|Event { pattern, key, .. }| match key {
        Some(key) => {
            quote!(#pattern { #key: key, .. } => ::core::option::Option::Some(::std::string::ToString::to_string(key)),)
        }
        None => quote!(#pattern { .. } => ::core::option::Option::None,),
    });
    let variants: Vec<String> =
        events.iter().filter_map(|event| event.variant).map(|name| name.unraw().to_string()).collect();
    // A generic type needs no bound of its own: it is a message wherever it can be serialized.
    let mut generics = input.generics.clone();
    if generics.type_params().next().is_some() {
        generics.make_where_clause().predicates.push(parse_quote!(Self: ::tower_sse::__private::Serialize));
    }
    let (ident, (impl_generics, type_generics, bounds)) = (&input.ident, generics.split_for_impl());
    Ok(quote! {
        #(#checks)*
        #[automatically_derived]
        impl #impl_generics ::tower_sse::Message for #ident #type_generics #bounds {
            const EVENTS: &'static [&'static str] = &[#(#names),*];
            const VARIANTS: &'static [&'static str] = &[#(#variants),*];
            fn event(&self) -> &'static str {
                match self { #(#name_arms)* }
            }
            fn key(&self) -> ::core::option::Option<::std::string::String> {
                match self { #(#key_arms)* }
            }
        }
    })
}

fn message_attribute(attributes: &[Attribute]) -> Option<&Attribute> {
    attributes.iter().find(|attribute| attribute.path().is_ident("message"))
}

/// Reads `#[message(event = "…", key = "…")]`.
fn event<'a>(
    pattern: TokenStream,
    span: proc_macro2::Span,
    attributes: &[Attribute],
    fields: &Fields,
    variant: Option<&'a syn::Ident>,
) -> Result<Event<'a>> {
    let (mut name, mut key) = (None::<LitStr>, None::<LitStr>);
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("message")) {
        attribute.parse_nested_meta(|meta| {
            let place = if meta.path.is_ident("event") {
                &mut name
            } else if meta.path.is_ident("key") {
                &mut key
            } else {
                return Err(meta.error("expected `event` or `key`"));
            };
            match place.replace(meta.value()?.parse()?) {
                Some(_) => Err(meta.error("this is set twice")),
                None => Ok(()),
            }
        })?;
    }
    crate::no_attribute_of_fields("message", fields)?;
    let name = name.ok_or_else(|| Error::new(span, "the name of the event is missing: `#[message(event = \"…\")]`"))?;
    let key = key.map(|key| member(&key, fields)).transpose()?;
    Ok(Event { pattern, name, key, variant })
}

/// Finds the field with this name, or with this number in a tuple.
fn member(key: &LitStr, fields: &Fields) -> Result<Member> {
    let found = fields.members().find(|member| match member {
        Member::Named(name) => name.unraw() == key.value(),
        Member::Unnamed(Index { index, .. }) => index.to_string() == key.value(),
    });
    found.ok_or_else(|| Error::new_spanned(key, format!("there is no field `{}`", key.value())))
}

/// The payload of an event is the content of its variant. The macro finds it by the name of the
/// variant, so serde must not change that name or leave it out.
fn check_serde(attributes: &[Attribute]) -> Result<()> {
    const CHANGES: [&str; 9] =
        ["content", "from", "into", "other", "rename", "rename_all", "tag", "try_from", "untagged"];
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let options = attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)?;
        for option in options {
            if CHANGES.iter().any(|change| option.path().is_ident(change)) {
                let text = "`#[message(event = \"…\")]` names the event, so serde must not rename or tag the variant";
                return Err(Error::new_spanned(option, text));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::expand;

    fn problem(input: &syn::DeriveInput) -> String {
        expand(input).unwrap_err().to_string()
    }

    #[test]
    fn an_invalid_type_has_an_error_that_names_the_problem() {
        let missing = "the name of the event is missing: `#[message(event = \"…\")]`";
        assert_eq!(
            problem(&parse_quote!(
                struct Deleted;
            )),
            missing
        );
        assert_eq!(
            problem(&parse_quote!(
                enum Order {
                    #[message(event = "a")]
                    A,
                    B,
                }
            )),
            missing
        );
        let enums: [(syn::DeriveInput, &str); 10] = [
            (
                parse_quote!(
                    enum Never {}
                ),
                "an enum without variants has no event",
            ),
            (parse_quote!(union Bits { a: u8 }), "a union cannot be a message"),
            (
                parse_quote!(
                    #[message(event = "a")]
                    enum A {
                        A,
                    }
                ),
                "an enum has its events at its variants",
            ),
            (
                parse_quote!(
                    enum A {
                        #[message(event = "a")]
                        A,
                        #[message(event = "a")]
                        B,
                    }
                ),
                "another variant has this event",
            ),
            (
                parse_quote!(
                    #[message(event = "a", key = "id")]
                    struct A {
                        name: u8,
                    }
                ),
                "there is no field `id`",
            ),
            (
                parse_quote!(
                    #[message(event = "a", key = "1")]
                    struct A(u8);
                ),
                "there is no field `1`",
            ),
            (
                parse_quote!(
                    #[message(event = "a", event = "b")]
                    struct A;
                ),
                "this is set twice",
            ),
            (
                parse_quote!(
                    #[message(name = "a")]
                    struct A;
                ),
                "expected `event` or `key`",
            ),
            (
                parse_quote!(
                    #[message(event = "a")]
                    struct A {
                        #[message(key)]
                        id: u8,
                    }
                ),
                "`message` belongs to the type or the variant, and not to a field",
            ),
            (
                parse_quote!(
                    #[serde(rename_all_fields = "camelCase", tag = "kind")]
                    enum A {
                        #[message(event = "a")]
                        A,
                    }
                ),
                "`#[message(event = \"…\")]` names the event, so serde must not rename or tag the variant",
            ),
        ];
        for (input, text) in enums {
            assert_eq!(problem(&input), text);
        }
    }
}
