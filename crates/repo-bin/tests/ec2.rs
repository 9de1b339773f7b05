//! `vireo-repo ec2` as scripts meet it: exit codes and messages. What it does at EC2 is tested in
//! `vireo-ec2`.

use std::fs;
use std::process::{Command, Output};

/// Settings that lead nowhere: nobody listens on that port.
const NOWHERE: &str = "region = \"eu-central-1\"\nendpoint = \"http://127.0.0.1:1\"\n\
                       [images.web]\nlike = \"ami-1\"\n";

/// Runs `vireo-repo ec2 status` with these settings and variables.
fn status(settings: &str, variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("ec2.toml");
    fs::write(&file, settings).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vireo-repo"));
    command.args(["ec2", "status", "--data"]).arg(dir.path()).arg("--settings").arg(&file);
    command.env_clear().env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", dir.path());
    command.envs(variables.iter().copied()).output().expect("it runs")
}

#[track_caller]
fn check(settings: &str, variables: &[(&str, &str)], code: i32, words: &[&str]) {
    let output = status(settings, variables);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in words {
        assert!(error.contains(word), "{word}: {error}");
    }
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];

#[test]
fn settings_that_are_none_are_a_usage_error_with_the_key() {
    check("[images.web]\nlikee = \"ami-1\"\n", &KEYS, 2, &["ec2.toml", "likee"]);
}

#[test]
fn a_place_that_is_not_reached_is_something_to_wait_for() {
    check(NOWHERE, &KEYS, 3, &["http://127.0.0.1:1", "region and endpoint"]);
}

#[test]
fn why_a_place_is_not_reached_is_said_once() {
    let output = status(NOWHERE, &KEYS);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error.matches("Connection refused").count(), 1, "{error}");
}

#[test]
fn without_credentials_or_a_region_it_is_refused_with_what_to_set() {
    check(NOWHERE, &[], 5, &["no AWS credentials", "AWS_PROFILE"]);
    check("[images.web]\nlike = \"ami-1\"\n", &KEYS, 5, &["no region", "AWS_REGION"]);
}
