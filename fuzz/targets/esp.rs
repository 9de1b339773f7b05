//! EFI system partitions; see `vireo_fuzz::esp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vireo_fuzz::esp::run(input));
