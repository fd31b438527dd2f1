//! The filters of sampling: the tokens that `top_k`, `top_p` and `min_p` leave, in this order. The order matters, since
//! each filter sees only the tokens that the one before it left.

/// The number of most likely tokens that are sorted first; four times as many, repeatedly, if their probability is
/// below `top_p`.
const FIRST_LOOK: usize = 64;

/// The parameters of the filters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filters {
    /// The number of most likely tokens that are kept. `None` or 0: all.
    pub(crate) top_k: Option<u32>,
    /// The probability of the nucleus. 1: all tokens are kept.
    pub(crate) top_p: f64,
    /// The least probability, as a fraction of the most likely token's. 0: all tokens are kept.
    pub(crate) min_p: f64,
}

impl Filters {
    /// Returns whether a token could be excluded.
    pub(crate) fn exclude_any(&self) -> bool {
        self.top_k.is_some() || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Returns the tokens that are kept, the most likely one among them. `weights` are unnormalized probabilities.
    pub(crate) fn kept(&self, weights: &[f64]) -> Vec<usize> {
        let mut kept = match self.top_k.filter(|most| *most > 0) {
            Some(most) => top(weights, most as usize),
            None => (0..weights.len()).collect(),
        };
        if self.top_p < 1.0 {
            kept = nucleus(weights, kept, self.top_p);
        }
        if self.min_p > 0.0 {
            // Source: Nguyen et al., arXiv:2407.01082, §3. `min_p` is at most 1, so the most likely token is kept.
            let least = weights.iter().copied().fold(0.0, f64::max) * self.min_p;
            kept.retain(|index| weights[*index] >= least);
        }
        kept
    }
}

/// Returns the `most` most likely tokens, with those that are as likely as the last of them, in ascending order.
///
/// Source: Fan et al., arXiv:1805.04833, §5.4. `TopKLogitsWarper` of transformers keeps ties too.
fn top(weights: &[f64], most: usize) -> Vec<usize> {
    if most >= weights.len() {
        return (0..weights.len()).collect();
    }
    let mut sorted = weights.to_vec();
    let (_, least, _) = sorted.select_nth_unstable_by(most - 1, |a, b| b.total_cmp(a));
    let least = *least;
    (0..weights.len()).filter(|index| weights[*index] >= least).collect()
}

/// Returns the nucleus: the smallest set of most likely tokens of `indices` whose probability among these is `top_p` or
/// more, in descending order. It always holds the most likely token. Ties are broken by the lower index.
///
/// Source: Holtzman et al., arXiv:1904.09751, §3.1.
fn nucleus(weights: &[f64], mut indices: Vec<usize>, top_p: f64) -> Vec<usize> {
    let wanted = indices.iter().map(|index| weights[*index]).sum::<f64>() * top_p;
    let order = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let mut look = FIRST_LOOK;
    loop {
        // The whole vocabulary is sorted only if the nucleus is that large.
        if look < indices.len() {
            indices.select_nth_unstable_by(look - 1, order);
        }
        let top = look.min(indices.len());
        indices[..top].sort_unstable_by(order);
        let mut have = 0.0;
        let enough = indices[..top].iter().position(|&index| {
            have += weights[index];
            have >= wanted
        });
        if let Some(last) = enough {
            indices.truncate(last + 1);
            return indices;
        }
        if top == indices.len() {
            return indices;
        }
        look *= 4;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn all(weights: &[f64]) -> Vec<usize> {
        (0..weights.len()).collect()
    }

    #[test]
    fn a_wide_nucleus_is_found_beyond_the_first_look() {
        let weights = vec![1.0; 1000];
        assert_eq!(nucleus(&weights, all(&weights), 0.5), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn each_filter_sees_what_the_one_before_it_left() {
        let weights = [0.1, 0.4, 0.2, 0.2, 0.1];
        let kept = |top_k, top_p, min_p| {
            let mut kept = Filters { top_k, top_p, min_p }.kept(&weights);
            kept.sort_unstable();
            kept
        };
        for (top_k, top_p, min_p, want) in [
            (None, 1.0, 0.0, vec![0, 1, 2, 3, 4]),
            (Some(0), 1.0, 0.0, vec![0, 1, 2, 3, 4]),
            (Some(1), 1.0, 0.0, vec![1]),
            (Some(2), 1.0, 0.0, vec![1, 2, 3]), // ties are kept
            (Some(9), 1.0, 0.0, vec![0, 1, 2, 3, 4]),
            (None, 1.0, 0.5, vec![1, 2, 3]),
            (None, 1.0, 1.0, vec![1]),
            (None, 0.7, 0.0, vec![1, 2, 3]),
            // Among the three that `top_k` keeps, the first has half of the probability.
            (Some(3), 0.45, 0.0, vec![1]),
            (None, 0.45, 0.0, vec![1, 2]),
            (None, 0.0, 0.0, vec![1]),
        ] {
            assert_eq!(kept(top_k, top_p, min_p), want, "{top_k:?} {top_p} {min_p}");
        }
    }

    proptest! {
        #[test]
        fn top_p_keeps_the_smallest_set_that_has_it(logs in vec(-8f64..8.0, 1..300), top_p in 0.01..1.0f64) {
            let weights: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
            let total: f64 = weights.iter().sum();
            let set = nucleus(&weights, all(&weights), top_p);
            let mass = |set: &[usize]| set.iter().map(|&i| weights[i]).sum::<f64>() / total;
            prop_assert!(mass(&set) >= top_p - 1e-9);
            prop_assert!(mass(&set[..set.len() - 1]) < top_p + 1e-9);
            let least = weights[*set.last().unwrap()];
            for (index, weight) in weights.iter().enumerate() {
                prop_assert!(set.contains(&index) || *weight <= least);
            }
        }

        #[test]
        fn top_k_keeps_so_many_distinct_weights(logs in vec(-8f64..8.0, 1..300), most in 1_usize..400) {
            let weights: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
            let kept = top(&weights, most);
            prop_assert!(kept.len() >= most.min(weights.len()));
            let least = kept.iter().map(|&i| weights[i]).fold(f64::INFINITY, f64::min);
            prop_assert!(weights.iter().enumerate().all(|(i, weight)| kept.contains(&i) == (*weight >= least)));
            prop_assert!(weights.iter().filter(|weight| **weight > least).count() < most);
        }
    }
}
