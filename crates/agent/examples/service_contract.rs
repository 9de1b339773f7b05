//! Holds the running system's service manager to the contract of
//! [`Services`](vireo_agent::Services), on three units of it:
//!
//! ```text
//! service_contract RELOADABLE RESTARTABLE STOPPED
//! ```
//!
//! The units are reloaded and restarted. Ends with a message and a status other than 0 if the
//! contract is broken.

use std::process::ExitCode;

use vireo_agent::testing::{Specimens, check_services};
use vireo_agent::{LiveSystem, system_services};
use vireo_classify::Unit;

fn main() -> ExitCode {
    let units: Vec<Unit> = std::env::args().skip(1).map(Unit::new).collect();
    let [reloadable, restartable, stopped] = units.as_slice() else {
        eprintln!("usage: service_contract RELOADABLE RESTARTABLE STOPPED");
        return ExitCode::from(2);
    };
    let specimens = Specimens {
        reloadable: reloadable.clone(),
        restartable: restartable.clone(),
        stopped: stopped.clone(),
    };
    let services = system_services();
    check_services(&*services, &LiveSystem::default(), &specimens);
    println!("{services:?} keeps the contract");
    ExitCode::SUCCESS
}
