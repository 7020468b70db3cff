//! See `bodies::nbd_options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::nbd_options(data));
