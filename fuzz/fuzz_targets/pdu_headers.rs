//! See `bodies::pdu_headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::pdu_headers(data));
