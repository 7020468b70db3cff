//! The control socket: HTTP and JSON on a Unix socket that root alone may use, between the verbs
//! and the daemon.
//!
//! ```text
//!  GET  /v1/volumes          [View]
//!  GET  /v1/status           Status
//!  POST /v1/attach           AttachRequest        -> View
//!  POST /v1/attach-static    StaticAttachRequest  -> View
//!  POST /v1/detach           DetachRequest        -> {}
//!  POST /v1/extend           ExtendRequest        -> View
//!  POST /v1/format           FormatRequest        -> View
//!  POST /v1/snapshot         SnapshotRequest      -> Taken
//!  POST /v1/doctor           DoctorRequest        -> [Finding]
//! ```
//!
//! A failure is status 500 (400 when the request is not understood) with `{"error": "one line"}`.

pub mod client;
pub mod server;
pub mod wire;
