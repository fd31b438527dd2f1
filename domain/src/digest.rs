//! Digests as text: lower-case hex, as `sha256sum` prints them.

/// The number of hex digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Formats bytes as lower-case hex, two digits per byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// Returns whether `text` is a SHA-256 in lower-case hex.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == SHA256_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
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
        assert!(is_sha256(&hex(&[0xab; 32])));
        for wrong in [hex(&[0xab; 31]), hex(&[0xab; 33]), hex(&[0xab; 32]).to_uppercase(), "g".repeat(64)] {
            assert!(!is_sha256(&wrong), "{wrong}");
        }
    }
}
