//! Image paths as text that reads back, for recorded facts. Other than `Display`, it loses
//! nothing: bytes that are not UTF-8 become `\xNN`, a backslash becomes two.

use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
use vireo_model::ImagePath;

fn escape(path: &ImagePath) -> String {
    let mut text = String::new();
    for chunk in path.as_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', r"\\"));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

fn unescape(text: &str) -> Option<ImagePath> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('\\');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    while let Some(part) = parts.next() {
        if part.is_empty() {
            bytes.push(b'\\');
            bytes.extend_from_slice(parts.next()?.as_bytes());
        } else {
            let digits = part.strip_prefix('x')?;
            bytes.push(u8::from_str_radix(digits.get(..2)?, 16).ok()?);
            bytes.extend_from_slice(&digits.as_bytes()[2..]);
        }
    }
    ImagePath::parse(&bytes).ok()
}

pub(crate) fn serialize<S: Serializer>(path: &ImagePath, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&escape(path))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<ImagePath, D::Error> {
    let text = String::deserialize(d)?;
    unescape(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no absolute path")))
}

/// The same for a list of paths.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(paths: &[ImagePath], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(paths.iter().map(escape))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<ImagePath>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        let parse = |text: &String| {
            unescape(text).ok_or_else(|| D::Error::custom(format!("{text:?} is no absolute path")))
        };
        texts.iter().map(parse).collect()
    }
}

/// The same for a path that may be absent.
pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        path: &Option<ImagePath>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => s.serialize_some(&escape(path)),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<ImagePath>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let path = unescape(&text);
        path.map(Some).ok_or_else(|| D::Error::custom(format!("{text:?} is no absolute path")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_reads_back() {
        for bytes in [&b"/etc/a"[..], b"/a\\b", b"/a\\xff", b"/a\xff\xfe\\", b"/\xc3\xa9/\\\\x"] {
            let path = ImagePath::parse(bytes).expect("a valid path");
            assert_eq!(unescape(&escape(&path)), Some(path), "{bytes:?}");
        }
        assert_eq!(unescape("/a\\q"), None);
        assert_eq!(unescape("/a\\x1"), None);
    }
}
