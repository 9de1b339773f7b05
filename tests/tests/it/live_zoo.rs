//! Many services in one guest: each changed file gets what it needs and nothing else does.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::ensure;
use vireo_tests::zoo::{Count, Ground, Zoo, cases, rounds};

/// The catalogue of changes that the planner was designed by.
const CATALOGUE: &str = include_str!("../../../crates/classify/tests/corpus.tsv");

/// Fewest cases, and rows of the catalogue among them, that a whole run tries.
const CASES_MIN: usize = 143;
const ROWS_MIN: usize = 86;

/// Fewest needed operations that each of the others finds where it is installed well.
const NEEDRESTART_MIN: usize = 95;
const CHECKRESTART_MIN: usize = 55;

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
    let guest = ground.guest()?;
    let started = Instant::now();
    println!("{}", ground.record(&guest)?);
    println!("recorded in {:.1} s", started.elapsed().as_secs_f64());
    let mut zoo = Zoo::new(&ground, guest)?;
    let (mut right, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    for round in rounds(cases) {
        let started = Instant::now();
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
    let score = zoo.score.clone();
    let tried = right.len() + wrong.len();
    let found = |tool: usize| score.0.values().map(|row| row.counts[tool].found).sum::<usize>();
    if only.is_none() {
        ensure!(tried >= CASES_MIN, "{tried} cases were tried");
        ensure!(rows(&right) + rows(&wrong) >= ROWS_MIN, "too few of the catalogue's rows");
        // Or the others were not run as they are meant to be, and the comparison says nothing.
        ensure!(found(1) >= NEEDRESTART_MIN && found(2) >= CHECKRESTART_MIN, "\n{score}");
    } else {
        ensure!(tried > 0, "no case is named so: {only:?}");
    }
    println!("{score}");
    drop(zoo);
    ground.finish()?;
    ensure!(wrong.is_empty(), "wrong: {wrong:?}");
    for row in score.0.values() {
        ensure!(row.counts[0] == Count { found: row.needed, wrong: 0 }, "{row:?}");
    }
    Ok(())
}
