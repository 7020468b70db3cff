//! names of logs and figures; sets up tracing.
