//! What the running system says of itself; see `vireo_fuzz::classify`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::classify::run(input));
