//! Floating-point numbers in `state.json`. JSON's own numbers would do for reading, but our parser may round the last
//! bit, and resuming must restore the state exactly.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A float that round-trips exactly: serialized as a string, the shortest that parses to the same number.
#[derive(Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Exact(pub f64);

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:?}", self.0))
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map(Self).map_err(|_| D::Error::custom(format!("'{text}' is not a number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_comes_back_to_the_last_bit() {
        for number in [0.1 + 0.2, 2.302_585_092_994_045_5, 5e-324, f64::MAX, -0.0, 1.0, 0.969_733_965_963_213_6] {
            let text = serde_json::to_string(&Exact(number)).unwrap();
            let read: Exact = serde_json::from_str(&text).unwrap();
            assert_eq!(read.0.to_bits(), number.to_bits(), "{text}");
        }
        assert!(serde_json::from_str::<Exact>("\"one\"").is_err());
    }
}
