//! Deltas of single files: they give the target, find what moved, and survive hostile streams.

use proptest::prelude::*;

use super::*;

/// A decoder's parties in memory.
struct InMemory<'a> {
    base: &'a [u8],
    patch: std::vec::IntoIter<u8>,
    refs: std::vec::IntoIter<u8>,
    diff: std::vec::IntoIter<u8>,
    extra: std::vec::IntoIter<u8>,
}

impl Streams for InMemory<'_> {
    fn patch(&mut self) -> Option<u64> {
        varint::read(|| self.patch.next())
    }

    fn refs(&mut self) -> Option<u64> {
        varint::read(|| self.refs.next())
    }

    fn diff(&mut self, bytes: &mut [u8]) -> Option<()> {
        bytes.iter_mut().try_for_each(|byte| {
            *byte = byte.wrapping_add(self.diff.next()?);
            Some(())
        })
    }

    fn extra(&mut self, len: u64, sink: &mut dyn FnMut(&[u8]) -> Option<()>) -> Option<()> {
        (0..len).try_for_each(|_| sink(&[self.extra.next()?]))
    }

    fn base(&mut self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        buffer.copy_from_slice(self.base.get(start..start.checked_add(buffer.len())?)?);
        Some(())
    }
}

/// Decodes what need not be a delta of `base`.
fn decoded(base: &[u8], delta: &Delta, len: usize) -> Option<Vec<u8>> {
    let script = Script::read(&delta.control, len as u64)?;
    let mut streams = InMemory {
        base,
        patch: delta.patch.clone().into_iter(),
        refs: delta.refs.clone().into_iter(),
        diff: delta.diff.clone().into_iter(),
        extra: delta.extra.clone().into_iter(),
    };
    let mut out = Vec::new();
    decode(&script, &mut streams, &mut |bytes| {
        out.extend_from_slice(bytes);
        Some(())
    })?;
    Some(out)
}

fn search(depth: usize) -> Search {
    let (step, stride) = if depth < 8 { (4, 3) } else { (1, 1) };
    Search { depth, step, stride, good_run: 24 }
}

fn len(delta: &Delta) -> usize {
    [&delta.control, &delta.patch, &delta.diff, &delta.extra, &delta.refs]
        .iter()
        .map(|stream| stream.len())
        .sum()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed + 1;
    let next = || {
        // Knuth's MMIX generator; any that is the same everywhere would do.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A program of functions that call each other, each `grown` by some bytes: what a compiler makes of
/// an edit. Calls are real, all else is noise.
fn program(grown: &[usize]) -> Vec<u8> {
    const FUNCTIONS: usize = 400;
    const CODE_AT: usize = 0x1000;
    let bodies: Vec<Vec<u8>> = (0..FUNCTIONS)
        .map(|number| {
            let mut body = noise(number as u64, 200);
            body.retain(|byte| !matches!(byte, 0xe8 | 0xe9 | 0x0f) && byte & 0xc7 != 0x05);
            if grown.contains(&number) {
                body.extend_from_slice(&[0x90; 23]);
            }
            body
        })
        .collect();
    let calls = |number: usize| [(number * 7 + 1) % FUNCTIONS, (number * 31 + 5) % FUNCTIONS];
    let mut starts = vec![CODE_AT];
    for body in &bodies {
        starts.push(starts[starts.len() - 1] + body.len() + 2 * 5);
    }
    let mut code = Vec::new();
    for (number, body) in bodies.iter().enumerate() {
        code.extend_from_slice(body);
        for callee in calls(number) {
            code.push(0xe8);
            let next = CODE_AT + code.len() + 4;
            code.extend_from_slice(&(starts[callee] as i32 - next as i32).to_le_bytes());
        }
    }
    elf_file(CODE_AT, &code)
}

/// The least ELF file with one loaded segment and one section of code.
fn elf_file(code_at: usize, code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; code_at];
    file.extend_from_slice(code);
    let end = file.len() as u64;
    let names_at = file.len();
    file.extend_from_slice(b"\0.text\0");
    let sections_at = file.len();
    file.resize(sections_at + 3 * 64, 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62_u16.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(40, &(sections_at as u64).to_le_bytes());
    for (at, number) in [(54, 56_u16), (56, 1), (58, 64), (60, 3), (62, 2)] {
        put(at, &number.to_le_bytes());
    }
    // The segment: loaded, readable and executable, the whole file at address 0.
    put(64, &1_u32.to_le_bytes());
    put(68, &5_u32.to_le_bytes());
    put(64 + 32, &end.to_le_bytes());
    put(64 + 40, &end.to_le_bytes());
    let text = sections_at + 64;
    put(text, &1_u32.to_le_bytes());
    put(text + 4, &1_u32.to_le_bytes());
    put(text + 8, &6_u64.to_le_bytes());
    put(text + 24, &(code_at as u64).to_le_bytes());
    put(text + 32, &(code.len() as u64).to_le_bytes());
    put(sections_at + 128 + 24, &(names_at as u64).to_le_bytes());
    file
}

#[test]
fn calls_over_what_grew_cost_nothing() {
    let (base, target) = (program(&[]), program(&[3, 200, 390]));
    let delta = encode(&base, &target, search(32)).expect("small");
    assert_eq!(decoded(&base, &delta, target.len()).as_ref(), Some(&target));
    let differing = base.iter().zip(&target).filter(|(a, b)| a != b).count();
    assert!(differing > 10_000, "the test's own premise: {differing} bytes differ");
    assert!(len(&delta) < 400, "{delta:?}");
    // Without knowledge of references each call would differ.
    let plain = encode(&base[0x1000..], &target[0x1000..], search(32)).expect("small");
    assert!(len(&plain) > 4 * len(&delta), "{} and {} bytes", len(&plain), len(&delta));
}

#[test]
fn an_edit_and_a_move_cost_little() {
    let base = noise(1, 300_000);
    let mut target = base[100_000..].to_vec();
    target.extend_from_slice(&base[..100_000]);
    target.splice(50_000..50_010, *b"words");
    target[150_000] ^= 1;
    let delta = encode(&base, &target, search(32)).expect("small");
    assert_eq!(decoded(&base, &delta, target.len()), Some(target));
    assert!(len(&delta) < 100, "{} bytes", len(&delta));
}

#[test]
fn empty_and_tiny_files_have_deltas_too() {
    for (base, target) in [(&b""[..], &b""[..]), (b"", b"abc"), (b"abc", b""), (b"abc", b"abd")] {
        let delta = encode(base, target, search(4)).expect("small");
        assert_eq!(decoded(base, &delta, target.len()).as_deref(), Some(target));
    }
}

#[test]
fn long_runs_of_one_byte_take_no_time() {
    let base = vec![0; 4 << 20];
    let mut target = vec![0; 5 << 20];
    for at in (0..target.len()).step_by(5000) {
        target[at] = 7;
    }
    let delta = encode(&base, &target, search(256)).expect("small");
    assert_eq!(decoded(&base, &delta, target.len()), Some(target));
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let block = (0_u64..5, 0_usize..3000).prop_map(|(seed, len)| noise(seed, len));
    prop::collection::vec(block, 0..5).prop_map(|blocks| blocks.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The guarantee.
    #[test]
    fn decoding_gives_the_target(base in any_file(), target in any_file()) {
        let delta = encode(&base, &target, search(8)).expect("small");
        prop_assert_eq!(decoded(&base, &delta, target.len()), Some(target));
    }

    /// Programs damaged anywhere, headers too, still give an exact delta.
    #[test]
    fn damaged_programs_are_exact(
        flips in prop::collection::vec((0_usize..100_000, any::<u8>()), 0..40),
    ) {
        let (base, mut target) = (program(&[]), program(&[17]));
        let len = target.len();
        for (at, byte) in &flips {
            target[at % if at % 2 == 0 { 200 } else { len }] = *byte;
        }
        for (base, target) in [(&base, &target), (&target, &base)] {
            let delta = encode(base, target, search(8)).expect("small");
            let made = decoded(base, &delta, target.len());
            prop_assert_eq!(made.as_ref(), Some(target));
        }
    }

    /// Streams that nobody wrote: no panic, and never more than the length that was agreed.
    #[test]
    fn hostile_streams_are_harmless(
        flips in prop::collection::vec((0_usize..5, 0_usize..100_000, any::<u8>()), 1..30),
        cut in 0_usize..1000,
    ) {
        let (base, target) = (program(&[]), program(&[17]));
        let mut delta = encode(&base, &target, search(8)).expect("small");
        for (stream, at, byte) in flips {
            let stream = match stream {
                0 => &mut delta.control,
                1 => &mut delta.patch,
                2 => &mut delta.diff,
                3 => &mut delta.extra,
                _ => &mut delta.refs,
            };
            let len = stream.len();
            if len > 0 {
                // Early bytes, where the layout is, more often.
                stream[at % if at % 3 == 0 { len } else { len.min(60) }] = byte;
                stream.truncate(len - cut.min(len) / 100);
            }
        }
        if let Some(made) = decoded(&base, &delta, target.len()) {
            prop_assert_eq!(made.len(), target.len());
        }
    }

    #[test]
    fn random_control_streams_are_harmless(control in prop::collection::vec(any::<u8>(), 0..200)) {
        let base = noise(1, 5000);
        let delta = Delta { control, extra: noise(2, 5000), ..Delta::default() };
        let _ = decoded(&base, &delta, 1000);
    }
}
