//! `seeds DIR`: writes the first inputs; see `vireo_fuzz::seeds`. The coverage counters need
//! libFuzzer's start, so this is a target that ends before the first input.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: end(vireo_fuzz::seeds::write(std::env::args_os().nth(1))),
    |_input| ()
);

fn end(result: Result<(), vireo_fuzz::seeds::Failure>) {
    if let Err(error) = &result {
        eprintln!("error: {error}");
    }
    std::process::exit(i32::from(result.is_err()));
}
