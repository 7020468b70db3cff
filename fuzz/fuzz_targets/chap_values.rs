//! See `bodies::chap_values`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::chap_values(data));
