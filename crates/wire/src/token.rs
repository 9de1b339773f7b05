//! Tokens: one line of text that lets its holder in and pins whom it talks to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vireo_model::Digest;

const PREFIX: &str = "vireo-token-v1";

/// What a token's holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Everything: create images, push, read the fleet.
    Admin,
    /// Enrol machines as instances, and read what that needs.
    Enroll,
}

/// 32 random bytes that prove who asks; written as 64 hexadecimal digits.
///
/// `Debug` does not show it. A server keeps only [`Secret::digest`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Digest);

/// Access to one repository: `vireo-token-v1:<kind>:<CA digest>:<secret>`.
///
/// The BLAKE3 digest of the repository's CA certificate (DER) stands in it, so that no other
/// trust has to be set up. `Debug` hides the secret; `Display` does not: it is the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What its holder may do.
    pub kind: TokenKind,
    /// BLAKE3 digest of the repository's CA certificate in DER form.
    pub ca: Digest,
    /// Proves that the holder has it.
    pub secret: Secret,
}

/// Why a text is no [`Token`] or [`Secret`]. The text itself is not repeated: it may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a token: {why}; a token is one line, {PREFIX}:admin|enroll:<64 hex>:<64 hex>, as `vireo-repo` prints it"
)]
pub struct TokenError {
    why: &'static str,
}

impl Secret {
    /// The secret with these bytes; they must come from the system's random source.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Digest::from_bytes(bytes))
    }

    /// The BLAKE3 digest of its bytes: what a server keeps and looks up. The secret has 256 random
    /// bits, so a slow password hash would add nothing.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// The 64 hexadecimal digits, for the `Authorization` header and for the holder's own file.
    #[must_use]
    pub fn reveal(&self) -> String {
        self.0.to_string()
    }
}

impl FromStr for Secret {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        text.parse()
            .map(Self)
            .map_err(|_| TokenError { why: "the secret is not 64 hexadecimal digits" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl TokenKind {
    const fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Enroll => "enroll",
        }
    }
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:{}:{}", self.kind, self.ca, self.secret.reveal())
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Space around it is ignored, so that a file's content can be given as it is.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let [prefix, kind, ca, secret] = parts[..] else {
            return Err(TokenError { why: "it does not have four parts" });
        };
        if prefix != PREFIX {
            return Err(TokenError { why: "it does not start with vireo-token-v1" });
        }
        let kind = match kind {
            "admin" => TokenKind::Admin,
            "enroll" => TokenKind::Enroll,
            _ => return Err(TokenError { why: "its kind is neither admin nor enroll" }),
        };
        let ca = ca
            .parse()
            .map_err(|_| TokenError { why: "the CA digest is not 64 hexadecimal digits" })?;
        Ok(Self { kind, ca, secret: secret.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            kind: TokenKind::Enroll,
            ca: Digest::of(b"ca"),
            secret: Secret::from_bytes([0xAB; 32]),
        }
    }

    #[test]
    fn a_token_reads_back_what_it_prints() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()), "as read from a file");
        assert_eq!(
            text,
            format!("vireo-token-v1:enroll:{}:{}", Digest::of(b"ca"), "ab".repeat(32))
        );
    }

    #[test]
    fn debug_hides_the_secret() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        let good = token().to_string();
        for text in [
            "",
            "vireo-token-v1",
            &good.replace("v1", "v2"),
            &good.replace("enroll", "root"),
            &good[..good.len() - 1],
            &format!("{good}:x"),
        ] {
            let error = text.parse::<Token>().expect_err("no token").to_string();
            assert!(!error.contains("abab"), "{error}");
        }
    }
}
