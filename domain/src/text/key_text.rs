//! The format of an API key: `sk-attune-`, 43 letters and digits, and six more that are a checksum of them, so that a
//! mistyped or truncated key is detected without a database lookup.
//!
//! Source of the format: GitHub's token formats, which end in a CRC-32 in base 62. The checksum adds no secrecy.

/// The prefix of every key.
pub const PREFIX: &str = "sk-attune-";

/// The number of random letters and digits: 256 bits.
pub const RANDOM: usize = 43;

/// The number of letters and digits of the checksum.
const CHECKSUM: usize = 6;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The result of checking a text against the key format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A key with a valid checksum.
    Checked,
    /// 43 letters and digits without a checksum: the format that `attune up` generated for a data folder before keys
    /// had a checksum.
    Unchecked,
    /// Not a key, or a mistyped one.
    Wrong,
}

/// Returns the key with this random part of 43 letters and digits.
#[must_use]
pub fn compose(random: &str) -> String {
    format!("{PREFIX}{random}{}", checksum(random))
}

/// Classifies `text`.
#[must_use]
pub fn shape(text: &str) -> Shape {
    let Some(rest) = text.strip_prefix(PREFIX).filter(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric())) else {
        return Shape::Wrong;
    };
    if rest.len() == RANDOM {
        return Shape::Unchecked;
    }
    match rest.split_at_checked(RANDOM) {
        Some((random, sum)) if sum == checksum(random) => Shape::Checked,
        _ => Shape::Wrong,
    }
}

/// Redacts a key: the result distinguishes it from others, but is too short to guess it. A text that is not a valid key
/// is redacted completely.
#[must_use]
pub fn redact(key: &str) -> String {
    if shape(key) == Shape::Wrong {
        return "…".into();
    }
    format!("{}…{}", &key[..PREFIX.len() + 4], &key[key.len() - 4..])
}

fn checksum(random: &str) -> String {
    let mut rest = crc32fast::hash(random.as_bytes());
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_shown_of_a_key_is_its_beginning_and_its_end() {
        let key = compose(&"a".repeat(RANDOM));
        assert_eq!(redact(&key), format!("sk-attune-aaaa…{}", &key[key.len() - 4..]));
        assert_eq!(redact("abc"), "…");
    }

    proptest! {
        #[test]
        fn a_whole_key_is_known_and_one_wrong_letter_refused(
            random in "[0-9A-Za-z]{43}",
            at in 10usize..59,
            other in "[0-9A-Za-z]",
        ) {
            let key = compose(&random);
            prop_assert_eq!(shape(&key), Shape::Checked);
            let mut wrong = key.clone();
            wrong.replace_range(at..=at, &other);
            prop_assert_eq!(shape(&wrong) == Shape::Checked, wrong == key);
            for cut in 1..6 {
                prop_assert_eq!(shape(&key[..key.len() - cut]), Shape::Wrong);
            }
        }
    }
}
