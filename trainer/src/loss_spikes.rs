//! Loss spikes: a training loss far above the mean of the steps before it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::checkpoints::exact::Exact;

/// The number of steps in the moving average that a loss is compared with.
const WINDOW: usize = 50;
/// The minimum number of steps in the average before a spike is detected.
const SEEN: usize = 10;
/// The multiple of the mean from which a loss is a spike.
const SPIKE: f64 = 2.0;
/// The number of consecutive spikes that is reported.
const STREAK: u64 = 5;

/// The moving average of the training loss. A spike is a loss of at least twice the mean of the last 50 losses that
/// were no spikes, once there are ten of them. Spikes are excluded from the mean, so that a loss that stays high is one
/// streak and does not raise the mean.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Spikes {
    window: VecDeque<Exact>,
    in_a_row: u64,
}

impl Spikes {
    /// Records a step's loss. Returns the mean if this is the fifth spike in a row: each streak is reported once.
    pub fn see(&mut self, loss: f64) -> Option<f64> {
        let mean = self.mean().filter(|mean| loss >= SPIKE * mean && loss > *mean);
        if mean.is_some() {
            self.in_a_row += 1;
            return mean.filter(|_| self.in_a_row == STREAK);
        }
        self.in_a_row = 0;
        self.window.push_back(Exact(loss));
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        None
    }

    fn mean(&self) -> Option<f64> {
        let sum: f64 = self.window.iter().map(|loss| loss.0).sum();
        (self.window.len() >= SEEN).then(|| sum / self.window.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(losses: impl IntoIterator<Item = f64>) -> Spikes {
        let mut spikes = Spikes::default();
        for loss in losses {
            assert_eq!(spikes.see(loss), None);
        }
        spikes
    }

    #[test]
    fn the_fifth_spike_in_a_row_is_reported_once_with_the_mean() {
        let mut spikes = after([1.0; 10].into_iter().chain([2.0; 4]));
        assert_eq!(spikes.see(3.0), Some(1.0));
        assert_eq!((0..20).filter_map(|_| spikes.see(3.0)).count(), 0, "one streak is one word");
        assert_eq!(spikes.see(1.0), None);
        let told: Vec<_> = (0..5).map(|_| spikes.see(2.0)).collect();
        assert_eq!(told, [None, None, None, None, Some(1.0)], "a new streak is a new word");
    }

    #[test]
    fn a_step_between_spikes_ends_the_streak() {
        let mut spikes = after([1.0; 10].into_iter().chain([2.0; 4]).chain([1.9]));
        assert!((0..4).all(|_| spikes.see(4.0).is_none()));
        assert!(spikes.see(4.0).is_some());
    }

    #[test]
    fn nothing_is_a_spike_before_ten_steps_nor_where_the_loss_is_zero() {
        after((0..9).map(|i| 10f64.powi(i)));
        after([0.0; 40]);
    }

    #[test]
    fn the_mean_is_over_the_last_fifty() {
        let mut spikes = after([100.0; 30].into_iter().chain([1.0; 50]).chain([2.0; 4]));
        assert_eq!(spikes.see(2.0), Some(1.0));
    }

    #[test]
    fn the_window_comes_back_from_its_file_as_it_was() {
        let spikes = after((0..30).map(|i| 1.0 + f64::from(i).sin() / 3.0));
        let text = serde_json::to_string(&spikes).unwrap();
        assert_eq!(serde_json::from_str::<Spikes>(&text).unwrap(), spikes);
    }
}
