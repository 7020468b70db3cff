//! See `bodies::session_in_time`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::session_in_time(data));
