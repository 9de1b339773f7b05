//! The commands, one file each: arguments, whose comments are the help text, and what they do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, value_parser};
use vireo_agent::checks::{ENTER, NamespaceChecker, answer, enter};
use vireo_agent::client::{Session, Tell, chain};
use vireo_agent::receipt::Outcome;
use vireo_agent::services::NoServices;
use vireo_agent::state::{DEFAULT_DIR, StateDir};
use vireo_agent::system::NoSystem;
use vireo_agent::{Agent, Applied, LiveSystem, Receipt, is_own_root, system_services};
use vireo_delta::{PublicKey, TrustedKeys};

use crate::exit::{FAILED, Failure, Output, UNDONE, WAITS};

mod apply;
mod check;
mod confirm;
mod enroll;
mod history;
mod learn;
mod plan;
mod recover;
mod run;
mod status;
mod undo;
mod verify;

/// Keep this machine on its image's newest version
#[derive(Debug, Parser)]
#[command(name = "vireo-agent", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Answer as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing while working
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Root of the files to update; services are left alone unless it is /
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where the agent keeps its records [default: ROOT/var/lib/vireo]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Enroll(enroll::Args),
    Run(run::Args),
    Check(check::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Confirm(confirm::Args),
    Status(status::Args),
    Verify(verify::Args),
    Undo(undo::Args),
    History(history::Args),
    Learn(learn::Args),
    Recover(recover::Args),
    /// Look at the files as an update would make them: reads an order, answers it
    #[command(hide = true, name = CHECK_VIEW)]
    CheckView,
    /// Become a program in another root directory
    #[command(hide = true, name = ENTER)]
    CheckEnter {
        root: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// The word by which the agent calls itself for checks.
const CHECK_VIEW: &str = "check-view";

/// A process that has this program, whatever has become of its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Longest time that a command is asked to take, in seconds: a year. More is a mistake, and no
/// clock counts as far as any number.
const MAX_SECONDS: u64 = 365 * 24 * 3600;

/// Seconds as an argument.
fn seconds() -> RangedU64ValueParser<u64> {
    value_parser!(u64).range(..=MAX_SECONDS)
}

/// How long to wait for others.
#[derive(Debug, clap::Args)]
struct WaitArgs {
    /// Wait so many seconds for the package manager if it is at work
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = seconds())]
    wait: u64,
}

impl WaitArgs {
    fn get(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

/// What every command needs to know.
#[derive(Debug)]
struct Context {
    root: PathBuf,
    state: StateDir,
    quiet: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<Output, Failure> {
    let Arguments { root, state, quiet, command, .. } = arguments;
    let default = || root.join(DEFAULT_DIR.trim_start_matches('/'));
    let state = StateDir::at(&state.unwrap_or_else(default));
    let context = Context { root, state, quiet };
    match command {
        Command::Enroll(args) => enroll::run(&args, &context),
        Command::Run(args) => run::run(&args, &context),
        Command::Check(args) => check::run(&args, &context),
        Command::Plan(args) => plan::run(&args, &context),
        Command::Apply(args) => apply::run(&args, &context),
        Command::Confirm(args) => confirm::run(&args, &context),
        Command::Status(args) => status::run(&args, &context),
        Command::Verify(args) => verify::run(&args, &context),
        Command::Undo(args) => undo::run(&args, &context),
        Command::History(args) => history::run(&args, &context),
        Command::Learn(args) => learn::run(&args, &context),
        Command::Recover(args) => recover::run(&args, &context),
        Command::CheckView => {
            let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
            answer(&mut input, &mut output)
                .map_err(|error| Failure::new(format!("cannot answer: {error}")))?;
            Output::silent()
        }
        Command::CheckEnter { root, command } => {
            Ok(Output::silent()?.with_code(u8::try_from(enter(&root, &command)).unwrap_or(1)))
        }
    }
}

impl Context {
    /// The agent with the adapters for this machine, or with none for another root.
    fn agent(&self) -> Agent {
        let state = self.state.clone();
        if !is_own_root(&self.root) {
            return Agent::new(&self.root, state, Box::new(NoSystem), Box::new(NoServices));
        }
        let scratch = state.path().join("check");
        let helper = vec![PathBuf::from(OWN_PROGRAM), PathBuf::from(CHECK_VIEW)];
        let system = Box::new(LiveSystem::default());
        let agent = Agent::new(&self.root, state, system, system_services());
        let agent = agent.with_checker(Box::new(NamespaceChecker::new(helper, &scratch)));
        match std::env::current_exe() {
            Ok(program) => agent.with_program(&program),
            Err(_) => agent,
        }
    }

    fn session(&self) -> Result<Session, Failure> {
        self.session_of(self.agent())
    }

    fn session_of(&self, agent: Agent) -> Result<Session, Failure> {
        Ok(Session::open(Arc::new(agent), self.tell())?)
    }

    /// One line per event on stderr, unless it is to be quiet.
    fn tell(&self) -> Tell {
        use std::io::Write as _;
        let quiet = self.quiet;
        Arc::new(move |line| {
            if !quiet {
                // Nobody need listen.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        })
    }
}

/// The keys given on the command line, or else those of the enrolment.
fn trusted(given: &[String], context: &Context) -> Result<TrustedKeys, Failure> {
    if !given.is_empty() {
        let keys: Vec<TrustedKeys> = given.iter().map(|key| keys(key)).collect::<Result<_, _>>()?;
        return Ok(keys.iter().flat_map(TrustedKeys::iter).collect());
    }
    match context.state.enrolment()? {
        Some(enrolment) => Ok(enrolment.trusted_keys()),
        None => Err(Failure::new(
            "no key is trusted: this machine is not enrolled; say whose bundles to accept with --trust KEY",
        )),
    }
}

/// A key, or the keys in a file.
fn keys(given: &str) -> Result<TrustedKeys, Failure> {
    let text = if PublicKey::is_meant_by(given) {
        given.to_owned()
    } else {
        std::fs::read_to_string(given)
            .map_err(|error| Failure::new(format!("cannot read the public key {given}: {error}")))?
    };
    text.parse().map_err(|error| Failure::new(format!("cannot use --trust {given}: {error}")))
}

/// The end of an update or an undo that this process made: its receipt, and its exit code. The agent
/// that was replaced is restarted last; an update that waits to be confirmed is the new one's then.
fn end(applied: Applied, agent: &Agent, context: &Context) -> Result<Output, Failure> {
    let Applied { receipt, restart_self } = applied;
    let output = report(&[&receipt])?;
    if restart_self && let Err(error) = agent.restart_self() {
        // What was done is said all the same.
        (context.tell())(&chain(&error));
        return Ok(output.or_code(WAITS));
    }
    Ok(output)
}

/// The last of some receipts, with the exit code of the worst.
fn report(receipts: &[&Receipt]) -> Result<Output, Failure> {
    let Some(last) = receipts.last() else { return Output::silent() };
    let code = receipts.iter().map(|receipt| code_of(receipt.outcome));
    let worst =
        [FAILED, UNDONE, WAITS].into_iter().find(|code_of| code.clone().any(|it| it == *code_of));
    Ok(Output::of(*last)?.with_code(worst.unwrap_or(0)))
}

fn code_of(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Failed => FAILED,
        Outcome::Undone => UNDONE,
        Outcome::Pending => WAITS,
        Outcome::Unchanged | Outcome::Done => 0,
    }
}

/// Runs network code to its end.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start an event loop: {error}")))?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use vireo_model::Digest;

    use super::*;

    fn receipt(outcome: Outcome) -> Receipt {
        Receipt { outcome, ..Receipt::unchanged(Digest::of(b""), None) }
    }

    #[test]
    fn every_command_that_updates_or_undoes_ends_with_the_code_of_its_outcome() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(&dir.path().join("state"));
        let context = Context { root: dir.path().to_owned(), state, quiet: true };
        for (outcome, code) in [
            (Outcome::Unchanged, 0),
            (Outcome::Done, 0),
            (Outcome::Failed, FAILED),
            (Outcome::Pending, WAITS),
            (Outcome::Undone, UNDONE),
        ] {
            // Nobody can restart an agent of another root.
            for (restart_self, code) in
                [(false, code), (true, if code == 0 { WAITS } else { code })]
            {
                let applied = Applied { receipt: receipt(outcome), restart_self };
                let output = end(applied, &context.agent(), &context).expect("a receipt");
                assert_eq!(output.code(), code, "{outcome:?}, {restart_self}");
            }
        }
    }

    #[test]
    fn a_time_that_no_clock_counts_to_is_refused_as_an_argument() {
        for command in [["apply", "--wait"], ["undo", "--wait"], ["learn", "--for"]] {
            let parse = |seconds: u64| {
                let words = ["vireo-agent"].into_iter().chain(command).map(str::to_owned);
                Arguments::try_parse_from(words.chain([seconds.to_string()]))
            };
            assert!(parse(MAX_SECONDS).is_ok(), "{command:?}");
            let error = parse(u64::MAX).expect_err("too long");
            assert_eq!(error.kind(), clap::error::ErrorKind::ValueValidation, "{command:?}");
        }
    }

    #[test]
    fn of_several_updates_the_worst_counts() {
        let [done, waits, undone, failed] =
            [Outcome::Done, Outcome::Pending, Outcome::Undone, Outcome::Failed].map(receipt);
        let code = |receipts: &[&Receipt]| report(receipts).expect("a receipt").code();
        assert_eq!(code(&[&done, &waits, &done]), WAITS);
        assert_eq!(code(&[&undone, &waits]), UNDONE);
        assert_eq!(code(&[&waits, &failed, &undone]), FAILED);
    }
}
