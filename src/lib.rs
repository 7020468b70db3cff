//! The daemon's rooms. A room imports only rooms on floors below its own; `tests/layering.rs` holds the rule.
//!
//! ```text
//!  4 docker  cli                who asks; they decide nothing
//!  3 volume                     life of an attachment
//!  2 nbd  lun                   an NBD export; a LUN as a block device
//!  1 cinder  sys                OpenStack's API; the few system calls (only `unsafe`)
//!  0 block  config  telemetry   the waist; settings; names of logs and figures
//! ```

pub mod block;
pub mod cinder;
pub mod cli;
pub mod config;
pub mod docker;
pub mod lun;
pub mod nbd;
pub mod sys;
pub mod telemetry;
pub mod volume;
