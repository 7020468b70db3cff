//! Async handles for users of the library: `Session`, `Disk`, `discover`. CONTRACT: see the owner.
