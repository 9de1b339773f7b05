//! Many services in one guest: each changed file gets what it needs and nothing else does.

use std::collections::BTreeSet;

use anyhow::ensure;
use vireo_tests::zoo::{Ground, Zoo, cases, rounds};

/// The catalogue of changes that the planner was designed by.
const CATALOGUE: &str = include_str!("../../../crates/classify/tests/corpus.tsv");

/// Cases that the agent does not get right: it runs no checks before the commit, compares no contents of
/// unit files and settings, has no read map, and takes a reload's word.
const NOT_YET: &[&str] = &[
    "APA-02",
    "NGX-02",
    "SSH-02",
    "SYS-10",
    "SYS-13",
    "SYS-25",
    "SYS-30",
    "a reload that does nothing",
    "a way to reload alone",
    "node, settings",
    "php-fpm, a broken pool",
    "postgresql, what only a start reads",
    "rsyslog, a broken rule",
    "sudo, a broken rule",
];

/// The names of the catalogue's rows.
fn catalogue() -> impl Iterator<Item = &'static str> {
    CATALOGUE.lines().skip(1).filter_map(|line| line.split('\t').next())
}

#[test]
fn live_every_change_gets_what_it_needs_and_no_more() -> anyhow::Result<()> {
    let only = std::env::var("VIREO_ZOO").ok();
    let mut cases = cases();
    cases.retain(|case| {
        let name = format!("{:?} {}", case.kind, case.id);
        only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    });
    let ground = Ground::new(&cases)?;
    let mut zoo = Zoo::new(&ground, ground.guest()?)?;
    let (mut right, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    for round in rounds(cases) {
        let started = std::time::Instant::now();
        for verdict in zoo.run(&round)? {
            println!("{verdict}");
            let list = if verdict.errors.is_empty() { &mut right } else { &mut wrong };
            list.insert(verdict.id);
        }
        println!("  -- {} cases, {:.1} s", round.len(), started.elapsed().as_secs_f64());
    }
    let rows = |list: &BTreeSet<&str>| catalogue().filter(|row| list.contains(row)).count();
    println!(
        "{} cases, {} right; of the catalogue's {} rows {} were tried, {} right",
        right.len() + wrong.len(),
        right.len(),
        catalogue().count(),
        rows(&right) + rows(&wrong),
        rows(&right),
    );
    println!("{}", zoo.score);
    drop(zoo);
    ground.finish()?;
    let known: BTreeSet<&str> = NOT_YET.iter().copied().collect();
    ensure!(only.is_some() || wrong == known, "wrong: {wrong:?}, known to be: {known:?}");
    Ok(())
}
