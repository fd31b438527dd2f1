//! The margin of an offer, by the past runs on its kind of machine.

use super::kind::Offer;
use crate::{bytes::Bytes, memory::Margin};

/// The predicted and the measured peak of a past run, and its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastPeak {
    /// The provider's name.
    pub provider: String,
    /// The offer's name.
    pub offer: String,
    /// The model name of the processor; `None`: not reported.
    pub processor: Option<String>,
    /// The predicted peak.
    pub predicted: Bytes,
    /// The measured peak.
    pub measured: Bytes,
}

/// Returns the margin of an offer, from past runs, newest first. The runs that count are those on its processor, which
/// is that of the newest run on the offer; without one, those on the offer whose processor is not known either.
#[must_use]
pub fn margin(past: &[PastPeak], offer: &Offer) -> Margin {
    let is_on = |run: &&PastPeak| offer.is_same_kind(&run.provider, &run.offer);
    let name = past.iter().filter(is_on).find_map(|run| run.processor.as_ref());
    let is_here = |run: &&PastPeak| match (name, &run.processor) {
        (Some(name), Some(other)) => name == other,
        (None, None) => is_on(run),
        _ => false,
    };
    Margin::of_runs(past.iter().filter(is_here).map(|run| (run.predicted, run.measured)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns runs on an offer, all with the same underestimate in percent.
    fn runs(count: usize, offer: &str, processor: Option<&str>, percent: u64) -> Vec<PastPeak> {
        let run = PastPeak {
            provider: "slurm".into(),
            offer: offer.into(),
            processor: processor.map(Into::into),
            predicted: Bytes(1000),
            measured: Bytes(1000 + 10 * percent),
        };
        vec![run; count]
    }

    fn on(past: &[PastPeak], name: &str) -> Margin {
        margin(past, &Offer::cpu("slurm", name, Bytes::mib(100), 2))
    }

    #[test]
    fn the_runs_on_the_processor_of_an_offer_count() {
        let past = [runs(10, "a", Some("Zen 3"), 7), runs(15, "b", Some("Zen 3"), 9), runs(30, "c", Some("Zen 5"), 20)];
        let past = past.concat();
        assert_eq!((on(&past, "a"), on(&past, "b")), (Margin::measured(9), Margin::measured(9)));
        assert_eq!(on(&past, "c"), Margin::measured(20));
        assert_eq!(on(&past, "new"), Margin::default());
        assert_eq!(on(&past[..10], "a"), Margin::default());
        let elsewhere = Offer::cpu("local", "a", Bytes::mib(100), 2);
        assert_eq!(margin(&past, &elsewhere), Margin::default());
    }

    #[test]
    fn without_a_known_processor_the_runs_on_all_slots_of_the_offer_count() {
        let past = [runs(10, "a/1", None, 7), runs(10, "a/2", None, 8), runs(30, "b", None, 20)].concat();
        assert_eq!(on(&past, "a/3"), Margin::measured(8));
        // From the first run with a known processor, the others do not count any more.
        let known = [runs(1, "a/1", Some("Zen 3"), 7), past].concat();
        assert_eq!(on(&known, "a/3"), Margin::default());
    }
}
