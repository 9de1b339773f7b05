//! Holds the running system's service manager to the contract of
//! [`Services`](vireo_agent::Services), on three units of it:
//!
//! ```text
//! service_contract bus|command RELOADABLE RESTARTABLE STOPPED
//! ```
//!
//! The units are reloaded, restarted, started and stopped. Ends with a message and a status other
//! than 0 if the contract is broken.

use std::process::ExitCode;

use vireo_agent::testing::{Specimens, check_services};
use vireo_agent::{LiveSystem, services_by_command, services_over_bus};
use vireo_classify::Unit;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [adapter, reloadable, restartable, stopped] = words.as_slice() else {
        eprintln!("usage: service_contract bus|command RELOADABLE RESTARTABLE STOPPED");
        return ExitCode::from(2);
    };
    let services = match adapter.as_str() {
        "bus" => services_over_bus(),
        _ => Ok(services_by_command()),
    };
    let services = match services {
        Ok(services) => services,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let unit = |name: &String| Unit::new(name.clone());
    let specimens = Specimens {
        reloadable: unit(reloadable),
        restartable: unit(restartable),
        stopped: unit(stopped),
    };
    check_services(&*services, &LiveSystem::default(), &specimens);
    println!("{services:?} keeps the contract");
    ExitCode::SUCCESS
}
