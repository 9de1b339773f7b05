//! `vireo-repo init`

use std::fmt;
use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use vireo_repo::Repository;

use crate::exit::Failure;
use crate::report::Report;

/// Make a repository
///
/// Makes the directory, a certificate authority for its server, and the administrator's token,
/// which is printed once and kept in DIR/admin-token.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory to make; empty or absent
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// DNS name or IP address that machines reach the server by; can be given more than once
    ///
    /// `localhost`, `127.0.0.1`, `::1` and this host's name are always among them.
    #[arg(long = "listen-name", value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Made {
    dir: PathBuf,
    names: Vec<String>,
    token: String,
    token_file: PathBuf,
}

impl Report for Made {
    const SCHEMA: &'static str = "vireo.init/1";
}

pub(crate) fn run(args: &Args) -> Result<Made, Failure> {
    let names = names(&args.names, host_name());
    let token = Repository::init(&args.dir, &names, Timestamp::now())?;
    let token_file = args.dir.join("admin-token");
    Ok(Made { dir: args.dir.clone(), names, token: token.to_string(), token_file })
}

fn names(given: &[String], host: Option<String>) -> Vec<String> {
    let always = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let mut names: Vec<String> = given.iter().cloned().chain(always).chain(host).collect();
    names.sort();
    names.dedup();
    names
}

/// The host's name, if it is one that a certificate can carry.
fn host_name() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    (!name.is_empty() && name.bytes().all(plain)).then(|| name.to_owned())
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "repository  {}", self.dir.display())?;
        writeln!(f, "names       {}", self.names.join(", "))?;
        writeln!(f, "token       {}", self.token)?;
        writeln!(
            f,
            "            is the administrator's; also in {}, keep it secret",
            self.token_file.display()
        )?;
        write!(
            f,
            "next        vireo-repo serve --data {} --listen 0.0.0.0:8443",
            self.dir.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_always_among_the_names_and_each_is_once() {
        let given = ["repo.example".to_owned(), "localhost".to_owned()];
        let names = names(&given, Some("host".into()));
        assert_eq!(names, ["127.0.0.1", "::1", "host", "localhost", "repo.example"]);
    }
}
