//! A running machine, whatever it runs on.

mod console;
mod nspawn;
mod qemu;
mod uml;

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::error::TestkitError;
use crate::http::Response;
use crate::lab::Lab;
use crate::run::Output;

pub use nspawn::Nspawn;
pub use qemu::{Booted, Firmware, boot, boot_for_good};
pub use uml::Uml;

/// Longest that a command inside a guest may take, unless the caller says otherwise.
pub(crate) const EXEC_DEADLINE: Duration = Duration::from_secs(60);

/// Longest for a guest to shut down in order.
const POWEROFF_DEADLINE: Duration = Duration::from_secs(40);

/// Longest for one request to a guest's server.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// Port of the guest's web server.
const HTTP_PORT: u16 = 80;

/// A machine that boots a disk image: one body of test over containers and real kernels.
///
/// Dropping a guest cuts its power. The image stays, and is detached when any of the ends returns.
pub trait Guest: Debug {
    /// What it runs on, for reports: `nspawn`, `uml`.
    fn kind(&self) -> &'static str;

    /// Its address in the lab's network.
    fn ip(&self) -> Ipv4Addr;

    /// The lab it is in.
    fn lab(&self) -> &Lab;

    /// Boots it and waits until its web server answers; gives the seconds that took. Starts again
    /// after any end, from what is then on the image.
    ///
    /// # Errors
    ///
    /// It runs already, or did not answer in time; the message has the end of its console.
    fn start(&mut self) -> Result<Duration, TestkitError>;

    /// Runs a program inside, without a shell, with `input`; gives what it left, whatever its exit
    /// code.
    ///
    /// # Errors
    ///
    /// The guest does not run or cannot be reached, or `deadline` passed.
    fn exec_with(
        &self,
        argv: &[&str],
        input: &[u8],
        deadline: Duration,
    ) -> Result<Output, TestkitError>;

    /// Waits until it has ended by itself (power off, reboot).
    ///
    /// # Errors
    ///
    /// It still runs when `deadline` has passed.
    fn wait_end(&mut self, deadline: Duration) -> Result<Exit, TestkitError>;

    /// Tells it to shut down, and returns at once.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    fn request_poweroff(&mut self) -> Result<(), TestkitError>;

    /// Ends it this instant, as a power failure does. In a container only the processes go: what
    /// they had written stays written.
    ///
    /// # Errors
    ///
    /// Its processes would not die, or its image stays in use.
    fn power_cut(&mut self) -> Result<(), TestkitError>;

    /// The end of what it wrote on its console.
    fn console(&self) -> String;

    /// [`Guest::exec_with`] without input, within a minute.
    ///
    /// # Errors
    ///
    /// As there.
    fn exec(&self, argv: &[&str]) -> Result<Output, TestkitError> {
        self.exec_with(argv, &[], EXEC_DEADLINE)
    }

    /// Asks its web server for `path`.
    ///
    /// # Errors
    ///
    /// It does not answer within ten seconds.
    fn http_get(&self, path: &str) -> Result<Response, TestkitError> {
        self.lab().http_get(SocketAddr::from((self.ip(), HTTP_PORT)), path, HTTP_TIMEOUT)
    }

    /// Shuts it down in order and waits for the end.
    ///
    /// # Errors
    ///
    /// It cannot be told, or still runs after 40 s.
    fn poweroff(&mut self) -> Result<Exit, TestkitError> {
        self.request_poweroff()?;
        self.wait_end(POWEROFF_DEADLINE)
    }
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It shut down, or asked for a reboot in a way that cannot be told apart.
    Off,
    /// It asked for a reboot: start it again.
    Reboot,
    /// It broke or was killed; the exit code of what ran it.
    Broken(i32),
}
