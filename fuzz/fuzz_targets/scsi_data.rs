//! See `bodies::scsi_data`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::scsi_data(data));
