//! Archives come out the same, whatever is between their streams, and nothing hostile takes long.

use super::*;

/// A deflate stream of this text, coded as zlib codes.
fn deflated(plain: &str) -> Vec<u8> {
    const DYNAMIC: u8 = 2;
    let mut text = vec![1, DYNAMIC];
    varint::put(&mut text, plain.len() as u64);
    text.extend_from_slice(plain.as_bytes());
    tokens::write(&text).expect("a text of tokens")
}

fn words(seed: usize) -> String {
    (0..200).map(|n| format!("word{} ", n * seed % 97)).collect()
}

/// A member with these flags; its fields are there as the flags say.
fn member(flags: u8, plain: &str) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
    for (flag, field) in
        [(4, &b"\x05\0extra"[..]), (8, b"a name\0"), (16, b"a comment\0"), (2, b"\x12\x34")]
    {
        if flags & flag != 0 {
            member.extend_from_slice(field);
        }
    }
    member.extend(deflated(plain));
    member.extend(*b"trailers");
    member
}

/// A file of a zip archive, behind its local header.
fn entry(method: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut entry = vec![0; ZIP_HEADER_LEN];
    entry[..4].copy_from_slice(ZIP_MAGIC);
    (entry[6], entry[8], entry[26], entry[28]) = (flags, method, 5, 3);
    entry.extend(*b"a.txtxxx");
    entry.extend_from_slice(data);
    if flags & 8 != 0 {
        entry.extend(*b"PK\x07\x08descriptor");
    }
    entry
}

fn zip() -> Vec<u8> {
    let directory = entry(0, 0, b"").repeat(20);
    let nested = entry(0, 0, &entry(8, 0, &deflated(&words(3))));
    [
        entry(8, 0, &deflated(&words(1))),
        directory,
        entry(8, 8, &deflated(&words(2))),
        nested,
        entry(8, ZIP_ENCRYPTED, &deflated(&words(4))),
        b"PK\x01\x02 central directory PK\x05\x06".to_vec(),
    ]
    .concat()
}

/// How many streams the text of `file` has, and that it makes the file again.
fn streams_in(file: &[u8]) -> usize {
    let text = read(file).expect("it has streams");
    assert!(write(&text).as_deref() == Some(file));
    let (mut rest, mut parts) = (&text[..], 0);
    while !rest.is_empty() {
        take(&mut rest).expect("its own text");
        parts += 1;
    }
    parts / 2
}

#[test]
fn members_with_any_header_come_out_the_same() {
    for flags in 0..32 {
        assert_eq!(streams_in(&member(flags, &words(1))), 1, "flags {flags}");
    }
    assert_eq!(read(&member(32, &words(1))), None, "a reserved flag");
}

#[test]
fn several_members_come_out_the_same_and_so_does_what_is_behind() {
    let two = [member(0, &words(1)), member(8, &words(2))].concat();
    assert_eq!(streams_in(&two), 2);
    for behind in [&[0; 512][..], b"garbage", gzip::MAGIC, b"PK\x03\x04"] {
        assert_eq!(streams_in(&[&two[..], behind].concat()), 2);
    }
    let package = [AR_MAGIC, b"control.tar.gz/ ", &two].concat();
    assert!(may_be_in(&package));
    assert_eq!(streams_in(&package), 2);
}

#[test]
fn archives_come_out_the_same_with_what_is_stored_in_them() {
    // Not the encrypted one.
    assert_eq!(streams_in(&zip()), 3);
    assert!(may_be_in(&zip()));
}

#[test]
fn what_zlib_packed_for_python_comes_out_the_same() {
    assert_eq!(streams_in(include_bytes!("../../frozen/python.zip")), 3);
}

#[test]
fn a_stream_that_is_coded_otherwise_stays_as_it_is() {
    // The padding of the last byte is not zeros.
    let mut stream = deflated(&words(1));
    let mut last = stream.pop().expect("not empty");
    for bit in (0..8).rev() {
        let padded = [&stream[..], &[last | 1 << bit]].concat();
        let found = tokens::read_first(&padded, 1 << 20);
        if found.is_some_and(|(text, len)| {
            len == padded.len() && tokens::write(&text).as_deref() != Some(&padded[..])
        }) {
            last |= 1 << bit;
            stream.push(last);
            let file = [entry(8, 0, &stream), entry(8, 0, &deflated(&words(2)))].concat();
            assert_eq!(streams_in(&file), 1);
            assert_eq!(read(&entry(8, 0, &stream)), None);
            return;
        }
        stream.truncate(padded.len() - 1);
    }
    panic!("no padding");
}

#[test]
fn what_has_no_streams_is_left_alone() {
    for file in [&b""[..], b"text", b"PK\x03\x04", b"\xfd7zXZ\0 PK\x03\x04 \x1f\x8b\x08"] {
        assert_eq!(read(file), None);
    }
    assert!(!may_be_in(b"\x28\xb5\x2f\xfd zstd"));
    let damaged = &member(0, &words(1))[..100];
    assert_eq!(read(damaged), None);
    let long = [member(0, &words(1)), vec![0; MAX_PACKED_LEN as usize]].concat();
    assert_eq!(read(&long), None, "too long a file");
    assert!(!may_be_in(&long));
}

#[test]
fn after_some_headers_without_a_stream_no_more_are_looked_for() {
    // A block of a kind that is none.
    let none = entry(8, 0, &[7]);
    let good = entry(8, 0, &deflated(&words(1)));
    let most = MAX_FALSE as usize - 1;
    assert_eq!(streams_in(&[none.repeat(most), good.clone()].concat()), 1);
    assert_eq!(read(&[none.repeat(most + 1), good].concat()), None);
    // Names that never end are looked through no more often.
    let endless = [gzip::MAGIC, &[8]].concat().repeat(MAX_PACKED_LEN as usize / 4);
    assert_eq!(read(&endless), None);
}

#[test]
fn all_streams_together_have_no_more_blocks_than_one_may_have() {
    let good = entry(8, 0, &deflated("a"));
    let most = MAX_BLOCKS as usize;
    assert_eq!(streams_in(&good.repeat(most + 5)), most);
    let mut text = read(&good.repeat(most)).expect("the limit");
    write(&text).expect("the limit");
    let stream = read(&good).expect("one");
    // The end of what is behind the last stream is empty.
    assert_eq!(text.pop(), Some(0));
    text.extend_from_slice(&stream);
    assert_eq!(write(&text), None);
}

#[test]
fn texts_that_nobody_wrote_never_panic() {
    let file = [zip(), member(31, &words(1))].concat();
    let text = read(&file).expect("it has streams");
    for at in 0..text.len() {
        assert!(write(&text[..at]).is_none_or(|made| made.len() < file.len()), "cut at {at}");
        let mut damaged = text.clone();
        damaged[at] ^= 0x5a;
        let _made = write(&damaged);
    }
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x5a;
        if let Some(text) = read(&damaged) {
            assert!(write(&text).as_deref() == Some(&damaged[..]), "byte {at}");
        }
    }
    let lengths = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(write(&lengths), None);
}
