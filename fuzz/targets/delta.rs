//! Bytes as a delta; see `vireo_fuzz::delta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::delta::run(input));
