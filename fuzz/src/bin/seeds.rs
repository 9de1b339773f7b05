//! `seeds DIR`: writes the first inputs; see `vireo_fuzz::seeds`. The coverage counters need
//! libFuzzer's start, so this is a target that ends before the first input.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: {
        if let Err(error) = vireo_fuzz::seeds::write(std::env::args_os().nth(1)) {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
        std::process::exit(0);
    },
    |_input| ()
);
