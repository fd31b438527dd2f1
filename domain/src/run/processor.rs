//! The processor that a run trained on, as its trainer found it: measured rates are those of a processor and a number
//! of threads.

use serde::{Deserialize, Serialize};

use crate::text::storable::storable;

/// The maximum length of a name, in characters.
const MOST_CHARACTERS: usize = 128;

/// A processor, and the number of threads of a run on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Processor {
    /// The model name, such as `AMD EPYC 9B14`.
    pub name: String,
    /// The number of CPU threads that the run used.
    pub threads: u32,
}

impl Processor {
    /// Reads the model name from the text of `/proc/cpuinfo`; `None`: it has none, as on some architectures.
    #[must_use]
    pub fn from_cpuinfo(text: &str, threads: u32) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        let (_, name) = line.split_once(':')?;
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        (!name.is_empty()).then_some(Self { name, threads }.bounded())
    }

    /// Returns the processor with a name that a row can hold, since a node reports it.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self { name: storable(&self.name).chars().take(MOST_CHARACTERS).collect(), threads: self.threads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_model_name_of_cpuinfo_is_read() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 17\nmodel name\t: AMD EPYC  9B14\n\n\
                    processor\t: 1\nmodel name\t: other\n";
        let found = Processor::from_cpuinfo(text, 2).unwrap();
        assert_eq!((found.name.as_str(), found.threads), ("AMD EPYC 9B14", 2));
        for none in ["", "model name\t:  \n", "processor\t: 0\nFeatures\t: fp asimd\n"] {
            assert_eq!(Processor::from_cpuinfo(none, 2), None, "{none:?}");
        }
    }

    #[test]
    fn limit_a_name_is_short_and_has_no_nul() {
        let long = Processor { name: format!("a\0{}", "b".repeat(1000)), threads: 1 }.bounded();
        assert_eq!(long.name.chars().count(), MOST_CHARACTERS);
        assert!(long.name.starts_with("a\u{fffd}b"), "{}", long.name);
    }
}
