//! Ed25519 keys (RFC 8032) in their text forms, and the set of keys that is trusted.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::error::{DeltaError, Detail};

const PUBLIC_PREFIX: &str = "vireo-key-v1:";
const SECRET_PREFIX: &str = "vireo-secret-key-v1:";

/// Length of a signature in bytes.
pub(crate) const SIGNATURE_LEN: usize = 64;

/// A signer's public key; written `vireo-key-v1:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A signer's secret key; written `vireo-secret-key-v1:` and 64 hexadecimal digits. Wiped from
/// memory when dropped, and never shown by `Debug`.
pub struct SecretKey(SigningKey);

/// The signers whose bundles are accepted. An empty set accepts nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedKeys(BTreeSet<PublicKey>);

impl PublicKey {
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this key's for `message`; weak keys and malleable signatures are
    /// refused (`verify_strict`).
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else {
            return false;
        };
        key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl SecretKey {
    /// A key from the system's random source.
    ///
    /// # Errors
    ///
    /// The system has no random source.
    pub fn generate() -> Result<Self, DeltaError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| Detail::Random { why: error.to_string() })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The text form, for a file that only its owner can read.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        format!("{SECRET_PREFIX}{}", hex(self.0.as_bytes()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }
}

impl TrustedKeys {
    /// Whether `key` is trusted.
    #[must_use]
    pub fn contains(&self, key: PublicKey) -> bool {
        self.0.contains(&key)
    }

    /// The keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = PublicKey> {
        self.0.iter().copied()
    }

    /// Whether nobody is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl FromStr for TrustedKeys {
    type Err = DeltaError;

    /// Reads one key a line; empty lines do not count.
    fn from_str(text: &str) -> Result<Self, DeltaError> {
        text.lines().filter(|line| !line.trim().is_empty()).map(str::parse).collect()
    }
}

impl PublicKey {
    /// Whether `text` is meant as a key: it has the beginning of one of any version, however wrong
    /// the rest may be.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.trim().starts_with("vireo-key-")
    }
}

impl FromStr for PublicKey {
    type Err = DeltaError;

    fn from_str(text: &str) -> Result<Self, DeltaError> {
        let error =
            Detail::Key { what: "the text", form: "vireo-key-v1: and 64 hexadecimal digits" };
        let bytes = text.trim().strip_prefix(PUBLIC_PREFIX).and_then(unhex).ok_or(error)?;
        Ok(Self(bytes))
    }
}

impl FromStr for SecretKey {
    type Err = DeltaError;

    fn from_str(text: &str) -> Result<Self, DeltaError> {
        // The text itself must not end up in a message.
        let form = "vireo-secret-key-v1: and 64 hexadecimal digits";
        let error = Detail::Key { what: "the secret text", form };
        let seed = text.trim().strip_prefix(SECRET_PREFIX).and_then(unhex).ok_or(error)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digest: vireo_model::Digest = text.parse().ok()?;
    Some(*digest.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_what_they_print_and_debug_keeps_the_secret() {
        let key = SecretKey::generate().expect("random bytes");
        let text = key.to_secret_text();
        let again: SecretKey = text.parse().expect("its own text");
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse::<PublicKey>().expect("its text"), key.public());
        assert!(!format!("{key:?}").contains(&text[SECRET_PREFIX.len()..]));
        let error = text.replace("v1", "v9").parse::<SecretKey>().expect_err("wrong prefix");
        assert!(!error.to_string().contains(&text[SECRET_PREFIX.len()..]), "{error}");
    }

    #[test]
    fn a_signature_fits_its_message_and_key_only() {
        let (key, other) = (
            SecretKey::generate().expect("random bytes"),
            SecretKey::generate().expect("random bytes"),
        );
        let signature = key.sign(b"message");
        assert!(key.public().verifies(b"message", &signature));
        assert!(!key.public().verifies(b"messagE", &signature));
        assert!(!other.public().verifies(b"message", &signature));
        // The all-zero point is a weak key that would accept forgeries without strict checks.
        assert!(!PublicKey([0; 32]).verifies(b"message", &[0; 64]));
    }
}
