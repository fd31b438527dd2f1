//! Log-probabilities of tokens, from one row of logits.

/// A token's log-probability at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token's ID.
    pub id: u32,
    /// The natural logarithm of its softmax probability. `None`: the first token of a prompt.
    pub logprob: Option<f64>,
    /// The most likely tokens at its position with their log-probabilities, in descending order.
    pub top: Vec<(u32, f64)>,
}

impl TokenScore {
    /// Returns the score of a prompt's first token, which no token precedes.
    #[must_use]
    pub const fn of_first(id: u32) -> Self {
        Self { id, logprob: None, top: Vec::new() }
    }

    /// Returns the score of `token` at the position of `logits`, with the `top` most likely tokens.
    #[must_use]
    pub fn new(logits: &[f32], token: u32, top: usize) -> Self {
        let total = log_sum_exp(logits);
        let logprob = |id: u32| logits.get(id as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit) - total);
        let top = most_likely(logits, top).into_iter().map(|id| (id, logprob(id))).collect();
        Self { id: token, logprob: Some(logprob(token)), top }
    }
}

/// Computes ln Σ exp, with the maximum factored out so that nothing overflows.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// Returns the IDs of the largest logits in descending order; ties are broken by the lower ID.
fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..u32::try_from(logits.len()).unwrap_or(u32::MAX)).collect();
    if count == 0 {
        return Vec::new();
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [0.5f32.ln(), 0.2f32.ln(), 0.3f32.ln()].map(|log| log + 700.0);
        let score = TokenScore::new(&logits, 1, 2);
        // The logits are f32 near 700, whose unit in the last place is 6e-5.
        assert!((score.logprob.unwrap().exp() - 0.2).abs() < 1e-4);
        assert_eq!(score.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2]);
        assert!((score.top[0].1.exp() - 0.5).abs() < 1e-4);
    }

    #[test]
    fn more_than_there_are_is_all_of_them_in_order() {
        assert_eq!(most_likely(&[1.0, 3.0, 3.0, 2.0], 20), [1, 2, 3, 0]);
        assert_eq!(most_likely(&[1.0, 3.0], 0), [0u32; 0]);
    }
}
