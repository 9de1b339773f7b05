//! A manifest and frames in a bundle that is signed; see `vireo_fuzz::bundle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::bundle::signed(input));
