//! systemd by its command, which reaches the manager without a bus as well.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use vireo_classify::{ManagerAction, Probe, Unit};

use crate::services::{
    JOB_DEADLINE, Job, MANAGER_DEADLINE, PROBE_DEADLINE, ServiceError, Services, TOOL_DEADLINE,
};

/// How often a running command is looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long after a command's end its output may still come.
const OUTPUT_WAIT: Duration = Duration::from_secs(1);

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
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // So that what it starts can be ended with it.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let output = read_all(child.stdout.take());
    let complaint = read_all(child.stderr.take());
    let status = wait(&mut child, deadline).map_err(failed)?;
    let complaint = complaint.recv_timeout(OUTPUT_WAIT).unwrap_or_default();
    if status.success() {
        let missing = |_| failed("it ended, but something that it started keeps its output".into());
        return output.recv_timeout(OUTPUT_WAIT).map_err(missing);
    }
    let said: String =
        String::from_utf8_lossy(&complaint).chars().take(MAX_COMPLAINT_LEN).collect();
    let said = said.trim().replace('\n', "; ");
    Err(failed(if said.is_empty() { status.to_string() } else { format!("{status}: {said}") }))
}

/// Reads a pipe on a thread of its own, which lives as long as somebody may write to it.
fn read_all(pipe: Option<impl io::Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What cannot be read is missing, as if it had not been said.
            let _ = pipe.take(MAX_OUTPUT_LEN).read_to_end(&mut bytes);
        }
        // Nobody may wait for it any more.
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits for the end of `child`, or ends it and all that it started.
fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus, String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if start.elapsed() < deadline => thread::sleep(POLL_INTERVAL),
            Ok(None) => {
                // Killing what has just ended fails, which is fine.
                let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                let _ = group.map(|group| kill_process_group(group, Signal::KILL));
                let _ = child.wait();
                return Err(format!("no end within {} s", deadline.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
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
