//! See `bodies::nbd_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::nbd_requests(data));
