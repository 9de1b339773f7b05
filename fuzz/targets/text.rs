//! Keys, tokens, names, listings; see `vireo_fuzz::text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::text::run(input));
