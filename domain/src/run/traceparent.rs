//! The name of a span in a trace, as processes pass it on: W3C Trace Context, version 00.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A span of a trace. Source: W3C Trace Context, section 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace's ID; not 0.
    trace: u128,
    /// The span's ID; not 0.
    span: u64,
    /// Bit 0: the trace is sampled.
    flags: u8,
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// The text is not a `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotATraceparent;

impl fmt::Display for NotATraceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("traceparent: it is not a W3C traceparent of version 00")
    }
}

impl std::error::Error for NotATraceparent {}

impl FromStr for Traceparent {
    type Err = NotATraceparent;

    fn from_str(text: &str) -> Result<Self, NotATraceparent> {
        let mut fields = text.split('-');
        let mut next = |length| fields.next().filter(|field| is_hex(field, length)).ok_or(NotATraceparent);
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let parsed = Self {
            trace: u128::from_str_radix(trace, 16).map_err(|_| NotATraceparent)?,
            span: u64::from_str_radix(span, 16).map_err(|_| NotATraceparent)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| NotATraceparent)?,
        };
        let is_valid = version == "00" && fields.next().is_none() && parsed.trace != 0 && parsed.span != 0;
        is_valid.then_some(parsed).ok_or(NotATraceparent)
    }
}

/// Returns whether a field has this length and only digits and `a` to `f`.
fn is_hex(field: &str, length: usize) -> bool {
    field.len() == length && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Serialize for Traceparent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Traceparent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_name_is_what_it_was_parsed_from() {
        let parsed: Traceparent = TEXT.parse().unwrap();
        assert_eq!(parsed.to_string(), TEXT);
        assert_eq!(serde_json::to_string(&parsed).unwrap(), format!("\"{TEXT}\""));
        assert_eq!(serde_json::from_str::<Traceparent>(&format!("\"{TEXT}\"")).unwrap(), parsed);
    }

    #[test]
    fn all_else_is_refused() {
        let zeros = |trace: usize, span: usize| format!("00-{}-{}-01", "0".repeat(trace), "0".repeat(span));
        for text in [
            String::new(),
            TEXT.to_uppercase(),
            format!("{TEXT}-"),
            TEXT.replacen("00", "01", 1),
            TEXT.replace("-01", "-1"),
            TEXT.replace("0af", "+af"),
            zeros(32, 16),
            TEXT.replace("b7ad6b7169203331", &"0".repeat(16)),
        ] {
            assert_eq!(text.parse::<Traceparent>(), Err(NotATraceparent), "{text}");
        }
    }
}
