//! Small macros for all modules.

/// Shrinks a collection whose length is less than an eighth of its capacity, for example after a
/// peak of load. The new capacity is twice the length, so that the next entries do not allocate. A
/// capacity of at most 1,024 entries stays.
macro_rules! shrink_if_sparse {
    ($collection:expr) => {
        if $collection.capacity() > 1024 && $collection.len() < $collection.capacity() / 8 {
            let len = $collection.len();
            $collection.shrink_to(len * 2);
        }
    };
}

/// Implements `Debug` with only the listed fields, because the other fields are secret, large or of
/// no use in a log: `opaque_debug!(|hub: Hub| { position: hub.position() })`. Type parameters come
/// before the argument: `opaque_debug!(<S: Debug, A> |service: SseService| { inner: service.inner
/// })`.
macro_rules! opaque_debug {
    ($(<$($parameter:ident $(: $bound:path)?),+>)? |$this:ident: $type:ident| { $($field:ident: $value:expr),* $(,)? }) => {
        impl $(<$($parameter $(: $bound)?),+>)? ::std::fmt::Debug for $type $(<$($parameter),+>)? {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                let $this = self;
                f.debug_struct(stringify!($type))$(.field(stringify!($field), &$value))*.finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use {opaque_debug, shrink_if_sparse};
