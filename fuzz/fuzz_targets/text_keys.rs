//! See `bodies::text_keys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::text_keys(data));
