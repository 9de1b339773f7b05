//! A disk image's first look; see `vireo_fuzz::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::image::run(input));
