//! Small macros that every layer uses.

/// Gives memory back when a collection holds less than an eighth of what it has room for, as after a
/// rush. It keeps room for twice what it holds, so that the next entries do not allocate at once. Small
/// collections keep their room.
macro_rules! give_memory_back {
    ($collection:expr) => {
        if $collection.capacity() > 1024 && $collection.len() < $collection.capacity() / 8 {
            let len = $collection.len();
            $collection.shrink_to(len * 2);
        }
    };
}

/// Implements `Debug` with the listed fields only, because the others are secret, large or of no use
/// to a reader: `opaque_debug!(|hub: Hub| { position: hub.position() })`. Parameters of the type stand
/// before it: `opaque_debug!(<S: Debug, A> |service: SseService| { inner: service.inner })`.
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

pub(crate) use {give_memory_back, opaque_debug};
