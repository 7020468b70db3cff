//! See `bodies::cinder_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::cinder_answer(data));
