//! the few system calls; the only room with `unsafe`.
