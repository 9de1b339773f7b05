//! A really updated copy of a guest's image.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::cache::Cache;
use crate::error::{ErrorKind, TestkitError, failed};
use crate::image::clone_image;
use crate::run::Run;
use crate::sources::Sources;
use crate::web;

const RECIPE: &str = include_str!("../recipes/update.sh");

/// Time for fetching and installing; some seconds are usual.
const DEADLINE: Duration = Duration::from_secs(600);

/// The recipe's exit code for "nothing has a newer version".
const NOTHING_NEWER: i32 = 3;

/// The server's configuration after the update: another header, and compression.
const CONFIGURATION: &str = "add_header X-Release 2 always;\ngzip_types text/plain text/css;\n";

/// Response header that shows which configuration the server has loaded: `1` or `2`.
pub const RELEASE_HEADER: &str = "x-release";

/// What was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// Packages that are newer now; at least one, a library that the web server maps.
    pub packages: Vec<Package>,
}

/// One upgraded package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version in the base.
    pub base: String,
    /// Its version in the target.
    pub target: String,
}

/// Makes `target` a copy of `base` with a real upgrade of the shared libraries that the web server
/// maps, from the distribution's security suite; a change of the server's configuration; and the
/// next release of the web content ([`web`]). Cost: some seconds, the network for what is new.
///
/// # Errors
///
/// [`ErrorKind::NothingNewer`] if no such library has a newer version; else what failed.
pub fn make(cache: &Cache, base: &Path, target: &Path) -> Result<Updated, TestkitError> {
    let list = Sources::of_host()?.updates_list();
    clone_image(base, target)?;
    let work = tempfile::tempdir().map_err(failed("make", "a temporary directory"))?;
    let path = |name: &str| work.path().join(name);
    let write = |name: &str, text: &str| {
        fs::write(path(name), text).map_err(failed("write", &path(name)))?;
        Ok::<_, TestkitError>(path(name))
    };
    let removed = web::write_target(&path("overlay"))?;
    let conf = path("overlay/etc/nginx/conf.d");
    fs::create_dir_all(&conf).map_err(failed("make directory", &conf))?;
    write("overlay/etc/nginx/conf.d/release.conf", CONFIGURATION)?;
    let sources = write("sources.list", &list)?;
    let removed = write("removed", &(removed.join("\n") + "\n"))?;
    let mount = path("root");
    fs::create_dir(&mount).map_err(failed("make directory", &mount))?;

    let _lock = cache.lock("apt")?;
    let output = Run::new("unshare")
        .args(["-m", "--propagation", "private", "bash", "-c", RECIPE, "update.sh"])
        .arg(target)
        .arg(&mount)
        .arg(cache.subdir("apt")?)
        .args([&sources, &path("overlay"), &removed])
        .deadline(DEADLINE)
        .output()?;
    match output.code {
        0 => Ok(Updated { packages: packages(&output.stdout) }),
        NOTHING_NEWER => Err(TestkitError::new(ErrorKind::NothingNewer, output.tail())),
        code => {
            let message = format!("update.sh failed with exit code {code}\n{}", output.tail());
            Err(TestkitError::new(ErrorKind::Failed, message))
        }
    }
}

/// Parses the recipe's lines: name, base version, target version.
fn packages(text: &str) -> Vec<Package> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some(Package { name: words.next()?, base: words.next()?, target: words.next()? })
    };
    text.lines().filter_map(parse).collect()
}
