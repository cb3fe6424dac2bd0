//! `#[derive(TypedTopic)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::{Data, DeriveInput, Error, Fields, Ident, LitStr, Result, Token, Type};

/// A part of the name of a topic, between slashes.
enum Segment<'a> {
    Text(String),
    Field(&'a Ident),
}

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "a typed topic is a struct"));
    };
    let fields: Vec<&Ident> = match &data.fields {
        Fields::Named(fields) => fields.named.iter().filter_map(|field| field.ident.as_ref()).collect(),
        Fields::Unit => Vec::new(),
        Fields::Unnamed(fields) => {
            return Err(Error::new_spanned(fields, "the fields of a typed topic have names"));
        }
    };
    crate::no_attribute_of_fields("topic", &data.fields)?;
    let (name, carried) = attribute(input)?;
    let segments = segments(&name, &fields)?;

    let writes = segments.iter().enumerate().map(|(number, segment)| {
        let slash = (number > 0).then(|| quote!(name.push('/');));
        let part = match segment {
            Segment::Text(text) => quote!(name.push_str(#text);),
            Segment::Field(field) => quote!(::tower_sse::__private::push_field(&mut name, &self.#field)?;),
        };
        quote!(#slash #part)
    });
    let reads = segments.iter().map(|segment| match segment {
        Segment::Text(text) => quote! {
            if segments.next() != ::core::option::Option::Some(#text) {
                return ::core::option::Option::None;
            }
        },
        Segment::Field(field) => {
            let text = variable(field);
            quote!(let #text = ::tower_sse::__private::read_field(segments.next())?;)
        }
    });
    let values = fields.iter().map(|field| {
        let text = variable(field);
        quote!(#field: #text)
    });
    let (ident, (impl_generics, type_generics, bounds)) = (&input.ident, input.generics.split_for_impl());
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::tower_sse::TypedTopic for #ident #type_generics #bounds {
            const NAME: &'static str = #name;

            fn to_topic(&self) -> ::core::result::Result<::tower_sse::Topic, ::tower_sse::InvalidName> {
                let mut name = ::std::string::String::new();
                #(#writes)*
                ::core::convert::TryFrom::try_from(name)
            }

            fn from_topic(topic: &str) -> ::core::option::Option<Self> {
                let mut segments = topic.split('/');
                #(#reads)*
                let read = Self { #(#values),* };
                // A text that a field reads but does not write, such as `+7`, is of another topic.
                let written = ::tower_sse::TypedTopic::to_topic(&read);
                let is_same = written.is_ok_and(|name| name.as_str() == topic);
                is_same.then_some(read)
            }
        }
        #(
            #[automatically_derived]
            impl #impl_generics ::tower_sse::Carries<#carried> for #ident #type_generics #bounds {}
        )*
    })
}

/// Returns the variable for the text of a field. The prefix keeps it apart from the other variables
/// of the macro.
fn variable(field: &Ident) -> Ident {
    quote::format_ident!("field_{}", field.unraw())
}

/// Reads `#[topic(name = "…", carries(…))]`.
fn attribute(input: &DeriveInput) -> Result<(LitStr, Vec<Type>)> {
    let (mut name, mut carried) = (None::<LitStr>, Vec::new());
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("topic")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                match name.replace(meta.value()?.parse()?) {
                    Some(_) => Err(meta.error("this is set twice")),
                    None => Ok(()),
                }
            } else if meta.path.is_ident("carries") {
                let types;
                syn::parenthesized!(types in meta.input);
                carried.extend(Punctuated::<Type, Token![,]>::parse_terminated(&types)?);
                Ok(())
            } else {
                Err(meta.error("expected `name` or `carries`"))
            }
        })?;
    }
    let missing = || Error::new_spanned(&input.ident, "the name of the topic is missing: `#[topic(name = \"…\")]`");
    Ok((name.ok_or_else(missing)?, carried))
}

/// Splits the name of a topic. Each field occurs once, as a whole segment.
fn segments<'a>(name: &LitStr, fields: &[&'a Ident]) -> Result<Vec<Segment<'a>>> {
    let problem = |text: String| Err(Error::new_spanned(name, text));
    let mut unused: Vec<&Ident> = fields.to_vec();
    let mut segments = Vec::new();
    for segment in name.value().split('/') {
        if let Some(field) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let Some(found) = unused.iter().position(|unused| unused.unraw() == field) else {
                return problem(format!("there is no field `{field}`, or the name has it twice"));
            };
            segments.push(Segment::Field(unused.remove(found)));
        } else if segment.contains(['{', '}']) {
            return problem(format!("`{segment}`: a field is a whole segment between slashes"));
        } else {
            segments.push(Segment::Text(segment.to_owned()));
        }
    }
    match unused.first() {
        Some(field) => problem(format!("the name does not have the field `{field}`")),
        None => Ok(segments),
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::expand;

    #[test]
    fn an_invalid_type_has_an_error_that_names_the_problem() {
        let types: [(syn::DeriveInput, &str); 8] = [
            (
                parse_quote!(
                    enum A {}
                ),
                "a typed topic is a struct",
            ),
            (
                parse_quote!(
                    #[topic(name = "a/{0}")]
                    struct A(u8);
                ),
                "the fields of a typed topic have names",
            ),
            (
                parse_quote!(
                    struct A;
                ),
                "the name of the topic is missing: `#[topic(name = \"…\")]`",
            ),
            (
                parse_quote!(
                    #[topic(name = "a", name = "b")]
                    struct A;
                ),
                "this is set twice",
            ),
            (
                parse_quote!(
                    #[topic(names = "a")]
                    struct A;
                ),
                "expected `name` or `carries`",
            ),
            (
                parse_quote!(
                    #[topic(name = "a/{id}/{id}")]
                    struct A {
                        id: u8,
                    }
                ),
                "there is no field `id`, or the name has it twice",
            ),
            (
                parse_quote!(
                    #[topic(name = "a-{id}")]
                    struct A {
                        id: u8,
                    }
                ),
                "`a-{id}`: a field is a whole segment between slashes",
            ),
            (
                parse_quote!(
                    #[topic(name = "a")]
                    struct A {
                        id: u8,
                    }
                ),
                "the name does not have the field `id`",
            ),
        ];
        for (input, text) in types {
            assert_eq!(expand(&input).unwrap_err().to_string(), text);
        }
    }
}
