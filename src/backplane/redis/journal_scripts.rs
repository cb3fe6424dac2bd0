//! The scripts that write and read journals. `journal_begin.lua` describes the entries.

use redis::Script;

/// The scripts of journals.
pub(super) struct Scripts {
    pub(super) begin: Script,
    pub(super) append: Script,
    pub(super) read: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            begin: Script::new(include_str!("journal_begin.lua")),
            append: Script::new(include_str!("journal_append.lua")),
            read: Script::new(include_str!("journal_read.lua")),
        }
    }
}
