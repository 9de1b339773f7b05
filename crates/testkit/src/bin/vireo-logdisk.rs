//! `vireo-logdisk DISK LOG`: serves a recording disk on the FUSE connection that is its standard
//! input. Started by `vireo_testkit::logdisk`, not by people.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use vireo_testkit::logdisk;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [disk, log] = args.as_slice() else {
        eprintln!("usage: {} DISK LOG, with a FUSE connection as standard input", logdisk::SERVER);
        return ExitCode::FAILURE;
    };
    let device = std::io::stdin().as_fd().try_clone_to_owned();
    let served = match device {
        Ok(device) => logdisk::serve(device, Path::new(disk), Path::new(log)),
        Err(error) => {
            eprintln!("{}: no standard input: {error}", logdisk::SERVER);
            return ExitCode::FAILURE;
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}: {:?}", logdisk::SERVER, std::error::Error::source(&error));
            ExitCode::FAILURE
        }
    }
}
