//! Keys, tokens, names, permissions and listings of trees, as people and servers hand them over.
//! What reads writes the same text again.

use vireo_delta::{Permits, PublicKey, SecretKey};
use vireo_model::{Digest, ImageName, ImageRef, Tree};

use crate::token::{Secret, Token, TokenKind};
use crate::tree_text;

/// The first byte of `input` chooses the parser.
pub fn run(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    if choice % 8 == 0 {
        listing(bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match choice % 8 {
        1 => again(text.parse::<PublicKey>().ok()),
        2 => {
            if let Ok(key) = text.parse::<SecretKey>() {
                let again: SecretKey = key.to_secret_text().parse().expect("its own text");
                assert_eq!(again.public(), key.public());
            }
        }
        3 => again(text.parse::<Token>().ok()),
        4 => drop(text.parse::<Secret>()),
        5 => again(text.parse::<ImageRef>().ok()),
        6 => again(text.parse::<ImageName>().ok()),
        7 => {
            again(text.parse::<Digest>().ok());
            again(text.parse::<Permits>().ok());
        }
        _ => {}
    }
}

/// A value that was read reads the same from what it shows.
fn again<T>(value: Option<T>)
where
    T: std::fmt::Display + std::str::FromStr + PartialEq + std::fmt::Debug,
{
    if let Some(value) = value {
        let text = value.to_string();
        assert_eq!(text.parse().ok().as_ref(), Some(&value), "{text:?}");
    }
}

/// The listing of a tree, for a seed.
#[must_use]
pub fn listing_of(tree: &Tree) -> String {
    tree_text::encode(tree)
}

/// A token, for a seed.
#[must_use]
pub fn token() -> String {
    let (ca, secret) = (Digest::of(b"ca"), Secret::from_bytes([1; 32]));
    Token { kind: TokenKind::Admin, ca, secret }.to_string()
}

fn listing(bytes: &[u8]) {
    let Ok(tree) = tree_text::parse(bytes) else { return };
    let text = tree_text::encode(&tree);
    let again = tree_text::parse(text.as_bytes()).expect("its own text");
    assert_eq!(again.digest(), tree.digest());
}
