//! Deltas of byte strings: they give the target or an error, whatever happened to them.

use proptest::prelude::*;
use vireo_delta::{Effort, ErrorKind, diff, limits, patch, patched_len};
use vireo_model::Digest;

/// Where the check stands (`docs/format/delta.md`), and what is behind it.
const CHECK: std::ops::Range<usize> = 112..144;

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    std::iter::repeat_with(|| {
        // Knuth's MMIX generator; any that is the same everywhere would do.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// The same with a check that is right.
fn sealed(mut delta: Vec<u8>) -> Vec<u8> {
    let check = Digest::of(&[&delta[..CHECK.start], &delta[CHECK.end..]].concat());
    delta[CHECK].copy_from_slice(check.as_bytes());
    delta
}

fn edited(base: &[u8]) -> Vec<u8> {
    let mut target = base.to_vec();
    target.splice(2000..2010, *b"some words");
    target.splice(7000..7000, noise(9, 50));
    target[9000] ^= 1;
    target
}

#[test]
fn an_edit_costs_what_changed_and_the_bytes_are_frozen() {
    let base = noise(1, 10_000);
    let delta = diff(&base, &edited(&base), Effort::Default).expect("short");
    assert_eq!(patch(&base, &delta).expect("its own"), edited(&base));
    assert_eq!(patched_len(&delta).expect("its own"), edited(&base).len() as u64);
    assert!(delta.len() < 320, "{} bytes", delta.len());
    let frozen = include_str!("../frozen/diff-digest.txt");
    assert_eq!(Digest::of(&delta).to_string(), frozen.trim_end(), "the format changed");
}

#[test]
fn what_has_nothing_of_the_base_is_compressed_alone() {
    let target = b"all of this is new. ".repeat(1000);
    for base in [&b""[..], b"x", &noise(2, 5000)] {
        for effort in [Effort::Fast, Effort::Default, Effort::Max] {
            let delta = diff(base, &target, effort).expect("short");
            assert!(delta.len() < 250, "{} bytes", delta.len());
            assert_eq!(patch(base, &delta).expect("its own"), target);
        }
    }
}

#[test]
fn files_too_long_for_a_delta_are_compressed_alone() {
    let base = vec![7; (64 << 20) + 1];
    let delta = diff(&base, &base, Effort::Fast).expect("below a gigabyte");
    assert!(delta.len() < 64 << 10, "{} bytes", delta.len());
    assert!(patch(&base, &delta).expect("its own") == base);
}

#[test]
fn every_single_bit_flip_and_every_cut_is_an_error() {
    let base = noise(1, 10_000);
    let delta = diff(&base, &edited(&base), Effort::Default).expect("short");
    for bit in 0..delta.len() * 8 {
        let mut flipped = delta.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        patch(&base, &flipped).expect_err("damaged");
    }
    for len in 0..delta.len() {
        patch(&base, &delta[..len]).expect_err("cut");
    }
    patch(&base, &[&delta[..], b"x"].concat()).expect_err("longer");
}

#[test]
fn errors_say_what_can_be_done() {
    let base = noise(1, 10_000);
    let delta = diff(&base, &edited(&base), Effort::Fast).expect("short");
    let kind = |base: &[u8], delta: &[u8]| patch(base, delta).expect_err("refused").kind();
    assert_eq!(kind(&base[1..], &delta), ErrorKind::WrongBase);
    assert_eq!(kind(&noise(2, base.len()), &delta), ErrorKind::WrongBase);
    assert_eq!(kind(&base, b"#!/bin/sh"), ErrorKind::Corrupt);
    assert_eq!(kind(&base, &delta[..100]), ErrorKind::Corrupt);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = delta.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        sealed(changed)
    };
    assert_eq!(kind(&base, &with(8, &[2])), ErrorKind::Unsupported);
    let long = (limits::MAX_PATCHED_LEN + 1).to_le_bytes();
    assert_eq!(kind(&base, &with(40, &long)), ErrorKind::Limit);
    let error = patched_len(&with(40, &long)).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert_eq!(kind(&base, &with(40, &[1])), ErrorKind::Corrupt);
    assert_eq!(kind(&base, &with(80, &[1, 2, 3])), ErrorKind::Corrupt);
    assert_eq!(kind(&base, &with(12, &[0xff; 4])), ErrorKind::Corrupt);
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let block = (0_u8..5, 0_usize..3000).prop_map(|(seed, len)| noise(seed, len));
    prop_oneof![
        4 => prop::collection::vec(block, 0..5).prop_map(|blocks| blocks.concat()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

fn any_effort() -> impl Strategy<Value = Effort> {
    prop_oneof![Just(Effort::Fast), Just(Effort::Default), Just(Effort::Max)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The guarantee.
    #[test]
    fn patching_gives_the_target(
        base in any_bytes(), target in any_bytes(), effort in any_effort(),
    ) {
        let delta = diff(&base, &target, effort)?;
        prop_assert_eq!(patch(&base, &delta)?, target);
    }

    /// Deltas that nobody wrote, with a check that is right: the target or an error, never other bytes.
    #[test]
    fn hostile_deltas_are_harmless(
        flips in prop::collection::vec((0_usize..100_000, any::<u8>()), 1..8),
    ) {
        let base = noise(1, 10_000);
        let target = edited(&base);
        let mut delta = diff(&base, &target, Effort::Fast)?;
        let len = delta.len();
        for (at, byte) in flips {
            // The head's digest of the target stays: other bytes with their own digest are another delta.
            let at = at % len;
            if !(80..144).contains(&at) {
                delta[at] = byte;
            }
        }
        if let Ok(made) = patch(&base, &sealed(delta)) {
            prop_assert_eq!(made, target);
        }
    }

    /// Bytes from anywhere behind a head that is right.
    #[test]
    fn random_streams_are_harmless(
        bytes in prop::collection::vec(any::<u8>(), 0..300), lens in prop::array::uniform5(0_u32..60),
    ) {
        let base = noise(1, 1000);
        let mut delta = diff(&base, &base, Effort::Fast)?;
        delta.truncate(144);
        for (number, len) in lens.into_iter().enumerate() {
            delta[12 + number * 4..16 + number * 4].copy_from_slice(&len.to_le_bytes());
        }
        delta.extend(bytes.into_iter().cycle().take(lens.iter().sum::<u32>() as usize));
        if delta.len() == 144 + lens.iter().sum::<u32>() as usize
            && let Ok(made) = patch(&base, &sealed(delta))
        {
            prop_assert_eq!(made, base);
        }
    }
}
