//! `vireo-agent`: keeps one machine on its image's newest version.
//!
//! Arguments, adapters, printing; everything else is in the library.

use std::process::ExitCode;

use clap::Parser as _;

mod commands;
mod exit;

fn main() -> ExitCode {
    // It stays on the machine for ever, beside others who need the memory.
    vireo_sys::heap::give_large_blocks_back();
    let arguments = commands::Arguments::parse();
    let json = arguments.json;
    match commands::run(arguments) {
        Ok(output) => output.print(json),
        Err(failure) => failure.print(json),
    }
}
