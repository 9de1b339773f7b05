//! `cargo xtask deps`: one TLS stack, and everyday builds without the crates of AWS.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::cargo;

/// Crates of which there must be one version: those that a connection's bytes and keys go through.
const ONCE: &[&str] = &[
    "aws-lc-rs",
    "h2",
    "http",
    "hyper",
    "hyper-rustls",
    "rustls",
    "rustls-webpki",
    "tokio-rustls",
];

/// Versions that must not come back, however they are asked for: no longer mended, with known holes
/// (RUSTSEC-2026-0049, -0098, -0099, -0104, -0258). The default features of every AWS crate ask for them.
const NEVER: &[(&str, &str)] =
    &[("rustls", "0.21."), ("rustls-webpki", "0.101."), ("h2", "0.3."), ("hyper", "0.14.")];

/// Other TLS stacks than the one that everything uses.
const OTHER_STACKS: &[&str] =
    &["boring", "boring-sys", "native-tls", "openssl", "openssl-sys", "s2n-tls"];

/// Members that everyday builds leave out.
const OPT_IN: &[&str] = &["vireo-ec2"];

pub(crate) fn run() -> anyhow::Result<()> {
    let path = cargo::root().join("Cargo.lock");
    let lock =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut findings = second_stacks(&packages(&lock));
    findings.extend(wrong_defaults(&cargo::metadata()?)?);
    if findings.is_empty() {
        eprintln!("deps: one TLS stack; everyday builds leave out {}", OPT_IN.join(", "));
        return Ok(());
    }
    bail!("dependencies are not as they should be:\n  {}", findings.join("\n  "))
}

/// The versions of every package that `Cargo.lock` names.
fn packages(lock: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut packages = BTreeMap::<_, Vec<_>>::new();
    let mut name = None;
    for line in lock.lines() {
        let value = |key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
        if let Some(found) = value("name") {
            name = Some(found);
        } else if let (Some(name), Some(version)) = (name, value("version")) {
            packages.entry(name).or_default().push(version);
        }
    }
    packages
}

fn second_stacks(packages: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
    let of = |name: &str| packages.get(name).cloned().unwrap_or_default();
    let every = OTHER_STACKS.iter().map(|name| (*name, ""));
    let never = NEVER.iter().copied().chain(every).flat_map(|(name, version)| {
        let found = of(name).into_iter().filter(move |found| found.starts_with(version));
        found.map(move |found| {
            format!("{name} {found}: who asks for it (`cargo tree -i {name}@{found}`) needs other features")
        })
    });
    let twice = ONCE.iter().filter(|name| of(name).len() > 1);
    let twice = twice.map(|name| format!("{name} in several versions: {}", of(name).join(", ")));
    never.chain(twice).collect()
}

/// `default-members` has to be kept by hand: cargo's patterns cannot leave one out.
fn wrong_defaults(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let list =
        |key: &str| metadata[key].as_array().with_context(|| format!("cargo gives no {key}"));
    let [members, defaults] = [list("workspace_members")?, list("workspace_default_members")?];
    let packages = list("packages")?;
    let name = |id: &Value| {
        let package = packages.iter().find(|package| package["id"] == *id);
        package.and_then(|package| package["name"].as_str()).unwrap_or_default().to_owned()
    };
    let mut findings = Vec::new();
    for id in members {
        let name = name(id);
        match (OPT_IN.contains(&name.as_str()), defaults.contains(id)) {
            (true, true) => findings.push(format!("{name} is among the default members")),
            (false, false) => {
                findings
                    .push(format!("{name} is not among the default members of Cargo.toml: add it"));
            }
            _ => {}
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "[[package]]\nname = \"rustls\"\nversion = \"0.23.46\"\n\n\
                        [[package]]\nname = \"h2\"\nversion = \"0.4.20\"\ndependencies = [\n \"http\",\n]\n";

    #[test]
    fn one_stack_is_fine() {
        assert_eq!(packages(LOCK)["h2"], ["0.4.20"]);
        assert_eq!(second_stacks(&packages(LOCK)), [""; 0]);
    }

    #[test]
    fn the_former_stack_is_found_beside_ours_and_alone() {
        let both = format!("{LOCK}\n[[package]]\nname = \"rustls\"\nversion = \"0.21.12\"\n");
        let found = second_stacks(&packages(&both));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("cargo tree -i rustls@0.21.12"), "{found:?}");
        assert!(found[1].contains("0.23.46, 0.21.12"), "{found:?}");
        let alone = LOCK.replace("0.4.20", "0.3.27");
        assert_eq!(second_stacks(&packages(&alone)).len(), 1);
    }

    #[test]
    fn another_stack_is_found_whatever_its_version() {
        for name in OTHER_STACKS {
            let with = format!("{LOCK}\n[[package]]\nname = \"{name}\"\nversion = \"0.10.1\"\n");
            let found = second_stacks(&packages(&with));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(&format!("cargo tree -i {name}@0.10.1")), "{found:?}");
        }
        let probe = LOCK.replace("h2", "openssl-probe");
        assert_eq!(second_stacks(&packages(&probe)), [""; 0], "it only finds certificates");
    }

    #[test]
    fn members_are_built_every_day_but_those_that_are_opt_in() {
        let metadata = |defaults: &[&str]| {
            serde_json::json!({
                "workspace_members": ["1", "2"],
                "workspace_default_members": defaults,
                "packages": [{ "id": "1", "name": "vireo-ec2" }, { "id": "2", "name": "vireo-new" }]
            })
        };
        assert_eq!(wrong_defaults(&metadata(&["2"])).ok(), Some(Vec::new()));
        let found = wrong_defaults(&metadata(&["1"])).expect("complete");
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
