//! A path, resolved in a tree of traps; see `vireo_fuzz::path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::path::run(input));
