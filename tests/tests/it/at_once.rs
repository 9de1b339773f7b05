//! Several processes that update one tree at the same time: one does, the others leave it alone.

use std::fs;
use std::thread;

use anyhow::{Context as _, ensure};
use vireo_model::Ignore;
use vireo_testkit::{Output, Run};
use vireo_tests::{Update, recover_tree, tree_digest};

/// How often: who comes first is chance.
const ROUNDS: usize = 8;

/// Exit code of "somebody else is at it; try again", as the README has it.
const BUSY: i32 = 3;

#[test]
fn root_of_several_updates_at_once_one_is_made() -> anyhow::Result<()> {
    let update = Update::new()?;
    let [_, target] = update.versions()?;
    let (work, state) = (update.work(), update.tree("state"));
    let (mut made, mut left_alone) = (0, 0);
    for round in 0..ROUNDS {
        for dir in [&work, &state] {
            if dir.exists() {
                fs::remove_dir_all(dir)?;
            }
        }
        update.copy_base(&work)?;
        let by_agent = update.apply_by_agent(&work, &state)?;
        let commands = [by_agent.clone(), update.apply(&work)?, by_agent, update.apply(&work)?];
        let run = |words: &[String]| Run::new(&words[0]).args(&words[1..]).output();
        let ends: Vec<Output> = thread::scope(|scope| {
            let started: Vec<_> =
                commands.iter().map(|words| scope.spawn(move || run(words))).collect();
            let end = |thread: thread::ScopedJoinHandle<'_, Result<Output, _>>| {
                Ok(thread.join().ok().context("a thread panicked")??)
            };
            started.into_iter().map(end).collect::<anyhow::Result<_>>()
        })?;
        for end in &ends {
            ensure!(end.success() || end.code == BUSY, "round {round}: {}", end.tail());
            made += usize::from(end.success());
            left_alone += usize::from(!end.success());
        }
        ensure!(ends.iter().any(Output::success), "round {round}: nobody made it");
        ensure!(tree_digest(&work, &Ignore::default())? == target, "round {round}: no target");
        ensure!(!recover_tree(&work)?, "round {round}: something was left to complete");
    }
    // The others came too late or found it done; both are answers.
    eprintln!("{ROUNDS} rounds of 4: {made} found or made the target, {left_alone} were refused");
    Ok(())
}
