//! Digests, and their text: lower-case hex, as `sha256sum` prints them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SHA-256. Its text, in JSON as well, is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

/// The error for a text that is not a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is 64 lower-case hex digits")]
pub struct BadSha256;

impl Sha256 {
    /// Returns the SHA-256 with these bytes, as a hash function computes them.
    #[must_use]
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = BadSha256;

    fn from_str(text: &str) -> Result<Self, BadSha256> {
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| BadSha256)?;
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (value(pair[0])? << 4) | value(pair[1])?;
        }
        Ok(Self(digest))
    }
}

/// Returns the value of a lower-case hex digit.
const fn value(digit: u8) -> Result<u8, BadSha256> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(BadSha256),
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Formats bytes as lower-case hex, two digits per byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_two_lower_case_digits() {
        assert_eq!(hex(&[0x00, 0x0a, 0x9f, 0xff]), "000a9fff");
        assert_eq!(hex(&[]), "");
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let expected: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex(&all), expected);
    }

    #[test]
    fn a_sha256_has_64_lower_case_digits() {
        assert_eq!(hex(&[0xab; 32]).parse::<Sha256>(), Ok(Sha256::from_digest([0xab; 32])));
        for wrong in [hex(&[0xab; 31]), hex(&[0xab; 33]), hex(&[0xab; 32]).to_uppercase(), "g".repeat(64)] {
            assert_eq!(wrong.parse::<Sha256>(), Err(BadSha256), "{wrong}");
        }
        for wrong in [String::new(), "é".repeat(32), format!("{}:", "a".repeat(63)), format!("/{}", "a".repeat(63))] {
            assert_eq!(wrong.parse::<Sha256>(), Err(BadSha256), "{wrong}");
        }
    }

    #[test]
    fn a_sha256_is_its_text_in_json_as_well() {
        let digest = Sha256::from_digest(std::array::from_fn(|at| u8::try_from(at * 8 + 1).unwrap()));
        let text = "0109111921293139414951596169717981899199a1a9b1b9c1c9d1d9e1e9f1f9";
        assert_eq!((digest.to_string().as_str(), text.parse::<Sha256>()), (text, Ok(digest)));
        assert_eq!(format!("{digest:.12}"), text[..12]);
        assert_eq!(serde_json::to_value(digest).unwrap(), text);
        assert_eq!(serde_json::from_value::<Sha256>(text.into()).unwrap(), digest);
        for wrong in [serde_json::json!("A".repeat(64)), serde_json::json!(1), serde_json::Value::Null] {
            assert!(serde_json::from_value::<Sha256>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn digests_sort_as_their_texts() {
        let digests = [[0x00; 32], [0x09; 32], [0x0a; 32], [0x9f; 32], [0xa0; 32], [0xff; 32]].map(Sha256::from_digest);
        assert!(digests.is_sorted() && digests.map(|digest| digest.to_string()).is_sorted());
    }
}
