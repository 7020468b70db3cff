//! See `bodies::sendtargets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::sendtargets(data));
