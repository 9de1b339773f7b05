//! systemd by its command, which reaches the manager without a bus as well.

use std::process::Command;
use std::thread;
use std::time::Duration;

use vireo_classify::{ManagerAction, Probe, Unit};
use vireo_sys::child::{self, Limits};

use crate::services::{
    JOB_DEADLINE, Job, MANAGER_DEADLINE, PROBE_DEADLINE, ServiceError, Services, TOOL_DEADLINE,
};

/// Longest output of a command that is read, in bytes: thousands of units.
const MAX_OUTPUT_LEN: u64 = 32 << 20;

/// How much of a failed command's complaint goes into the message, in characters.
const MAX_COMPLAINT_LEN: usize = 300;

/// systemd by `systemctl`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Systemctl;

impl Services for Systemctl {
    fn daemon_reload(&self) -> Result<(), ServiceError> {
        systemctl(&["daemon-reload"], MANAGER_DEADLINE).map(drop)
    }

    fn daemon_reexec(&self) -> Result<(), ServiceError> {
        systemctl(&["daemon-reexec"], MANAGER_DEADLINE).map(drop)
    }

    fn run(&self, job: Job, units: &[Unit]) -> Vec<Result<(), ServiceError>> {
        let verb = match job {
            Job::Reload => "try-reload-or-restart",
            Job::Restart => "try-restart",
            Job::Start => "start",
            Job::Stop => "stop",
        };
        let run = |unit: &Unit| systemctl(&[verb, "--", unit.as_str()], JOB_DEADLINE).map(drop);
        // One thread each: all jobs are queued before the first is done. Its exit status would
        // not say which of several units failed.
        thread::scope(|scope| {
            let running: Vec<_> = units.iter().map(|unit| scope.spawn(move || run(unit))).collect();
            let ended = |thread: thread::ScopedJoinHandle<'_, Result<(), ServiceError>>| {
                thread.join().unwrap_or_else(|_| Err(ServiceError::new(verb, "its thread ended")))
            };
            running.into_iter().map(ended).collect()
        })
    }

    fn restart_later(&self, unit: &Unit) -> Result<(), ServiceError> {
        systemctl(&["try-restart", "--no-block", "--", unit.as_str()], JOB_DEADLINE).map(drop)
    }

    fn run_tool(&self, command: &[String]) -> Result<(), ServiceError> {
        run(command.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), TOOL_DEADLINE)
            .map(drop)
    }

    fn reset_failed(&self, units: &[Unit]) -> Result<(), ServiceError> {
        let mut words = vec!["reset-failed", "--"];
        words.extend(units.iter().map(Unit::as_str));
        // It goes on after a unit that is not loaded.
        match systemctl(&words, MANAGER_DEADLINE) {
            Err(error) if !error.to_string().contains("not loaded") => Err(error),
            _ => Ok(()),
        }
    }

    fn tell_user_manager(&self, manager: &Unit, action: ManagerAction) -> Result<(), ServiceError> {
        // systemd(1): what `systemctl --user` would ask for, without a bus of the user's.
        let signal = match action {
            ManagerAction::None => return Ok(()),
            ManagerAction::Reload => "--signal=SIGHUP",
            ManagerAction::Reexec => "--signal=SIGRTMIN+25",
        };
        let words = ["kill", "--kill-who=main", signal, "--", manager.as_str()];
        systemctl(&words, MANAGER_DEADLINE).map(drop)
    }

    fn probe(&self, probe: &Probe) -> Result<String, ServiceError> {
        let mut command: Vec<&str> = Vec::new();
        if let Some(user) = &probe.user {
            command.extend(["runuser", "-u", user, "--"]);
        }
        command.extend(probe.command.iter().map(String::as_str));
        let output = run(&command, PROBE_DEADLINE)?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    fn set_timer(
        &self,
        name: &str,
        delay: Duration,
        command: &[String],
    ) -> Result<(), ServiceError> {
        let (unit, delay) = (format!("--unit={name}"), format!("--on-active={}s", delay.as_secs()));
        let mut words = vec![
            "systemd-run",
            "--quiet",
            "--no-ask-password",
            "--collect",
            &unit,
            &delay,
            "--timer-property=AccuracySec=1s",
            "--",
        ];
        words.extend(command.iter().map(String::as_str));
        run(&words, MANAGER_DEADLINE).map(drop)
    }

    fn clear_timer(&self, name: &str) -> Result<(), ServiceError> {
        let timer = format!("{name}.timer");
        match systemctl(&["stop", "--", &timer], MANAGER_DEADLINE) {
            Err(error) if !error.to_string().contains("not loaded") => Err(error),
            _ => Ok(()),
        }
    }
}

/// The properties of all loaded units, as [`parse_show`](vireo_classify::parse_show) reads them.
pub(crate) fn show(properties: &[&str]) -> Result<Vec<u8>, ServiceError> {
    let wanted = format!("--property={}", properties.join(","));
    systemctl(&["show", &wanted, "--", "*"], MANAGER_DEADLINE)
}

/// A property of the manager itself.
pub(crate) fn show_manager(property: &str) -> Result<String, ServiceError> {
    let wanted = format!("--property={property}");
    let text = systemctl(&["show", &wanted, "--value"], MANAGER_DEADLINE)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn systemctl(arguments: &[&str], deadline: Duration) -> Result<Vec<u8>, ServiceError> {
    let command: Vec<&str> =
        ["systemctl", "--no-ask-password", "--no-pager"].iter().chain(arguments).copied().collect();
    run(&command, deadline)
}

/// Runs a command to its end and gives its output. What it leaves running is not waited for.
pub(crate) fn run(command: &[&str], deadline: Duration) -> Result<Vec<u8>, ServiceError> {
    let failed = |why: String| ServiceError::new(command.join(" "), why);
    let (program, arguments) =
        command.split_first().ok_or_else(|| failed("no command".to_owned()))?;
    let limits = Limits { deadline, output_len_max: MAX_OUTPUT_LEN, ends_all: false };
    let ended = child::run(Command::new(program).args(arguments).env("LC_ALL", "C"), None, &limits)
        .map_err(|error| failed(error.to_string()))?;
    if ended.status.success() {
        if ended.is_whole {
            return Ok(ended.output);
        }
        return Err(failed("it ended, but something that it started keeps its output".to_owned()));
    }
    let said = String::from_utf8_lossy(&ended.complaint);
    let said: String = said.chars().take(MAX_COMPLAINT_LEN).collect();
    let (said, status) = (said.trim().replace('\n', "; "), ended.status);
    Err(failed(if said.is_empty() { status.to_string() } else { format!("{status}: {said}") }))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_command_gives_its_output_or_its_complaint() {
        assert_eq!(run(&["echo", "a"], Duration::from_secs(9)), Ok(b"a\n".to_vec()));
        let error = run(&["sh", "-c", "echo why >&2; exit 3"], Duration::from_secs(9));
        let error = error.expect_err("it fails").to_string();
        assert_eq!(error, "sh -c echo why >&2; exit 3: exit status: 3: why");
        assert!(run(&["/nonexistent/tool"], Duration::from_secs(9)).is_err());
    }

    #[test]
    fn what_a_command_leaves_running_is_not_waited_for() {
        let start = Instant::now();
        let said = run(&["sh", "-c", "sleep 60 & echo said >&2; exit 1"], Duration::from_secs(9));
        assert!(said.is_err());
        let output = run(&["sh", "-c", "sleep 60 & exit 0"], Duration::from_secs(9));
        assert!(output.expect_err("the pipe is open").to_string().contains("keeps its output"));
        let none = run(&["sh", "-c", "sleep 60 >&- 2>&- & echo a"], Duration::from_secs(9));
        assert_eq!(none, Ok(b"a\n".to_vec()));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let error = run(&["sleep", "99"], Duration::from_millis(50)).expect_err("too long");
        assert_eq!(error.to_string(), "sleep 99: no end within 0 s");
    }
}
