//! A plan that recovery finds; see `vireo_fuzz::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::journal::run(input));
