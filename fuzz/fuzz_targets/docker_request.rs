//! See `bodies::docker_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::docker_request(data));
