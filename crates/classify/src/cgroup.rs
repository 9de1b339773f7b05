//! `/proc/PID/cgroup`: to which unit a process belongs, without asking the service manager.
//!
//! The first component of the path that names a service, scope or socket is the unit; what lies
//! below it the unit has delegated to itself. Under `user@UID.service` the user's own manager
//! has its units. Containers are foreign: what they map is not this system's.

use serde::{Deserialize, Serialize};

use crate::Unit;

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// The service manager itself, process 1.
    Manager,
    /// A unit of the system.
    Unit(Unit),
    /// A unit of a user's own manager.
    UserUnit {
        /// The system's unit around it, `user@1000.service`.
        manager: Unit,
        /// The user's unit.
        unit: Unit,
    },
    /// A login session, `session-3.scope`.
    Session(Unit),
    /// A container or virtual machine; the text is the component that shows it.
    Foreign(String),
    /// No unit at all: kernel threads, or no systemd here.
    Nobody,
}

/// Name parts that show a container: its manager's scope, or a control group of its own making.
const FOREIGN_PREFIXES: &[&str] =
    &["docker-", "libpod-", "kubepods", "lxc", "machine-", "crio-", "cri-containerd-", "garden-"];
/// Whole names that do.
const FOREIGN_NAMES: &[&str] = &["docker", "machine.slice", "libpod_parent", "actions_job"];

/// The owner of process `pid`, from the content of its cgroup file.
///
/// With several hierarchies the unified one counts, and systemd's own (`name=systemd`) where
/// the unified one says nothing.
#[must_use]
pub fn owner_of(pid: u32, cgroup: &[u8]) -> Owner {
    if pid == 1 {
        return Owner::Manager;
    }
    let path_of = |controllers: &[u8]| {
        cgroup.split(|b| *b == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |b| *b == b':');
            let (_id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            (names == controllers && path != b"/").then_some(path)
        })
    };
    match path_of(b"").or_else(|| path_of(b"name=systemd")) {
        Some(path) => owner_at(&String::from_utf8_lossy(path)),
        None => Owner::Nobody,
    }
}

fn owner_at(path: &str) -> Owner {
    // A name that would collide with a kernel file gets a leading underscore.
    let parts = path.split('/').filter(|part| !part.is_empty());
    let mut parts = parts.map(|part| part.strip_prefix('_').unwrap_or(part)).peekable();
    let mut first = None;
    for part in parts.by_ref() {
        if is_foreign(part) {
            return Owner::Foreign(part.to_owned());
        }
        if is_unit(part) {
            first = Some(part);
            break;
        }
    }
    let Some(first) = first else { return Owner::Nobody };
    if let Some(foreign) = parts.clone().find(|part| is_foreign(part)) {
        return Owner::Foreign(foreign.to_owned());
    }
    if first.starts_with("user@") {
        let unit = parts.find(|part| is_unit(part)).unwrap_or(first);
        return Owner::UserUnit { manager: Unit::new(first), unit: Unit::new(unit) };
    }
    if first.starts_with("session-") && first.ends_with(".scope") {
        return Owner::Session(Unit::new(first));
    }
    Owner::Unit(Unit::new(first))
}

fn is_unit(part: &str) -> bool {
    [".service", ".scope", ".socket", ".mount", ".swap"].iter().any(|kind| part.ends_with(kind))
}

fn is_foreign(part: &str) -> bool {
    // `lxc.service` starts containers but is none; `lxcfs.service` likewise.
    let service = part.ends_with(".service");
    FOREIGN_NAMES.contains(&part)
        || (!service && FOREIGN_PREFIXES.iter().any(|prefix| part.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cgroup: &str, expected: &str) {
        let text = match owner_of(7, cgroup.as_bytes()) {
            Owner::Manager => "manager".to_owned(),
            Owner::Unit(unit) => unit.to_string(),
            Owner::UserUnit { manager, unit } => format!("{manager} > {unit}"),
            Owner::Session(unit) => format!("session {unit}"),
            Owner::Foreign(name) => format!("foreign {name}"),
            Owner::Nobody => "nobody".to_owned(),
        };
        assert_eq!(text, expected, "{cgroup:?}");
    }

    #[test]
    fn a_system_service_owns_what_runs_below_it() {
        check("0::/system.slice/nginx.service\n", "nginx.service");
        check(
            "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
            "postgresql@15-main.service",
        );
        check("0::/system.slice/app.service/payload/deep\n", "app.service");
        check("0::/system.slice/_cpu.service\n", "cpu.service");
    }

    #[test]
    fn user_units_and_sessions_are_told_from_system_units() {
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service\n",
            "user@1000.service > sync.service",
        );
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n",
            "user@1000.service > init.scope",
        );
        check("0::/user.slice/user-0.slice/session-12.scope\n", "session session-12.scope");
    }

    #[test]
    fn containers_are_foreign_but_their_managers_are_not() {
        check("0::/system.slice/docker-3f2a.scope\n", "foreign docker-3f2a.scope");
        check("0::/machine.slice/libpod-77.scope/container\n", "foreign machine.slice");
        check("0::/kubepods.slice/kubepods-pod1.slice/cri-1.scope\n", "foreign kubepods.slice");
        check("0::/lxc.payload.web/system.slice/nginx.service\n", "foreign lxc.payload.web");
        check("0::/docker/3f2a\n", "foreign docker");
        check("0::/system.slice/docker.service\n", "docker.service");
        check("0::/system.slice/lxcfs.service\n", "lxcfs.service");
    }

    #[test]
    fn the_unified_hierarchy_counts_and_systemds_own_where_it_is_empty() {
        check("12:pids:/x\n1:name=systemd:/system.slice/a.service\n0::/\n", "a.service");
        check("1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n", "b.service");
        check("", "nobody");
        check("0::/\n", "nobody");
        check("rubbish\n\u{fffd}:\n", "nobody");
    }

    #[test]
    fn process_1_is_the_manager() {
        assert_eq!(owner_of(1, b"0::/init.scope\n"), Owner::Manager);
    }
}
