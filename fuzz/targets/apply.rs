//! A signed bundle applied to a tree; see `vireo_fuzz::apply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::apply::run(input));
