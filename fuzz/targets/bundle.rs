//! Bytes as a bundle; see `vireo_fuzz::bundle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::bundle::raw(input));
