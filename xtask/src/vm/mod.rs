//! A small virtual machine with a real kernel, for what a host's kernel or rights do not allow.
//!
//! ```text
//!  emulator  the machine's own, or one unpacked into the bed
//!  image     Debian packages -> kernel, initramfs, root disk; made once, kept
//!  job       a script, files and host-built programs -> a tar on a disk
//!  machine   one boot: job in, output streamed, status and files out
//! ```
//!
//! The processor is emulated (TCG): slow, but it needs no right, no KVM and no module on the host, and so it
//! works in any container. The guest's scripts and its package list are in `tests/beds/vm`.

mod emulator;
mod image;
mod job;
mod machine;

pub(crate) use emulator::Emulator;
pub(crate) use image::Image;
pub(crate) use job::Job;
