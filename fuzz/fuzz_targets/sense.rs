//! See `bodies::sense`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::sense(data));
