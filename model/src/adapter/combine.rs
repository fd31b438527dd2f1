//! Several adapters, merged into one: each factor of the result is merged from the same factor of the adapters that
//! have it. As in LoRAX, the factors are merged, and not their products.
//!
//! Sources: `strategies.py` and `utils.py` in `server/lorax_server/utils/merges` of `predibase/lorax`, which are PEFT's
//! `merge_utils.py`; Yadav et al., arXiv:2306.01708, §3 (TIES); Yu et al., arXiv:2311.03099, eq. 3 (DARE: kept values
//! are divided by the density, which LoRAX and early releases of PEFT omit).

use attune_domain::{
    architecture::PROJECTIONS,
    peft::Refusal,
    serve::{MajoritySign, MergeRule, MergeStrategy},
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tch::{Kind, Tensor};

use super::{LayerPairs, LoraAdapter, LoraPair};
use crate::error::ModelError;

impl LoraAdapter {
    /// Merges adapters, each with its weight.
    ///
    /// # Errors
    /// [`ModelError::AdapterConfig`]: there is no adapter, one has DoRA, or they have different ranks or scales;
    /// [`ModelError::Torch`].
    pub fn combine(parts: &[(Self, f64)], rule: &MergeRule) -> Result<Self, ModelError> {
        let first = parts.first().map(|(adapter, _)| adapter);
        let first = first.ok_or_else(|| Refusal::new("ids", "none", "at least one adapter"))?;
        for (adapter, _) in parts {
            check_same(first, adapter)?;
        }
        let mut random = Pcg64::seed_from_u64(rule.seed);
        let mut layers = Vec::with_capacity(first.layers.len());
        for layer in 0..first.layers.len() {
            let mut pairs = LayerPairs::default();
            for (projection, place) in pairs.iter_mut().enumerate() {
                *place = combined(parts, (layer, projection), rule, &mut random)?;
            }
            layers.push(pairs);
        }
        let mut spec = first.spec.clone();
        let has =
            |name: &&str| parts.iter().any(|(adapter, _)| adapter.spec.target_modules.iter().any(|own| own == name));
        spec.target_modules = PROJECTIONS.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
        Ok(Self { spec, layers })
    }
}

fn check_same(first: &LoraAdapter, other: &LoraAdapter) -> Result<(), ModelError> {
    if other.spec.use_dora {
        return Err(Refusal::new("use_dora", "true", "false in adapters that are merged").into());
    }
    if other.spec.rank != first.spec.rank {
        let allowed = format!("{}, the rank of the first adapter", first.spec.rank);
        return Err(Refusal::new("r", other.spec.rank, &allowed).into());
    }
    if (other.scale() - first.scale()).abs() > f64::EPSILON {
        let allowed = format!("a scale of {}, as the first adapter's", first.scale());
        return Err(Refusal::new("lora_alpha", other.spec.lora_alpha, &allowed).into());
    }
    Ok(())
}

/// Merges the factors of one projection; `None` if no adapter has any.
fn combined(
    parts: &[(LoraAdapter, f64)],
    (layer, projection): (usize, usize),
    rule: &MergeRule,
    random: &mut Pcg64,
) -> Result<Option<LoraPair>, ModelError> {
    let pair = |(adapter, weight): &'_ (LoraAdapter, f64)| {
        let pair = adapter.layers.get(layer)?.get(projection)?.as_ref()?;
        Some(((pair.a.shallow_clone(), *weight), (pair.b.shallow_clone(), *weight)))
    };
    let (a, b): (Vec<_>, Vec<_>) = parts.iter().filter_map(pair).unzip();
    if a.is_empty() {
        return Ok(None);
    }
    Ok(Some(LoraPair::new(merged(&a, rule, random)?, merged(&b, rule, random)?, None)))
}

/// Merges matrices of one shape, each with its weight.
fn merged(tensors: &[(Tensor, f64)], rule: &MergeRule, random: &mut Pcg64) -> Result<Tensor, ModelError> {
    let mut pruned = Vec::with_capacity(tensors.len());
    for (tensor, _) in tensors {
        pruned.push(match rule.strategy {
            _ if rule.density >= 1.0 => tensor.shallow_clone(),
            MergeStrategy::Linear => tensor.shallow_clone(),
            MergeStrategy::Ties => largest(tensor, rule.density)?,
            MergeStrategy::DareLinear | MergeStrategy::DareTies => kept_at_random(tensor, rule.density, random)?,
        });
    }
    let stacked = Tensor::f_stack(&pruned, 0)?;
    let weights: Vec<f32> = tensors.iter().map(|(_, weight)| *weight as f32).collect();
    let weighted = stacked.f_mul(&Tensor::f_from_slice(&weights)?.f_reshape([-1, 1, 1])?)?;
    match rule.strategy {
        MergeStrategy::Linear | MergeStrategy::DareLinear => sum(&weighted),
        MergeStrategy::Ties | MergeStrategy::DareTies => {
            let elected = elected(&stacked, rule.majority_sign)?;
            let count = sum(&elected)?.f_clamp_min(1.0)?;
            Ok(sum(&weighted.f_mul(&elected)?)?.f_div(&count)?)
        }
    }
}

/// Returns the sum over the adapters.
fn sum(stacked: &Tensor) -> Result<Tensor, ModelError> {
    Ok(stacked.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?)
}

/// Returns the tensor with only the fraction `density` of its values, the largest ones, and zeros elsewhere.
fn largest(tensor: &Tensor, density: f64) -> Result<Tensor, ModelError> {
    let count = (density * tensor.numel() as f64) as i64;
    let flat = tensor.f_reshape([-1])?;
    let (_, kept) = flat.f_abs()?.f_topk(count, 0, true, false)?;
    let mask = flat.f_zeros_like()?.f_index_fill(0, &kept, 1.0)?;
    Ok(flat.f_mul(&mask)?.f_reshape(tensor.size())?)
}

/// Returns the tensor with each value kept with the probability `density` and divided by it, and zeros elsewhere.
fn kept_at_random(tensor: &Tensor, density: f64, random: &mut Pcg64) -> Result<Tensor, ModelError> {
    let factor = (1.0 / density) as f32;
    let mask: Vec<f32> =
        (0..tensor.numel()).map(|_| if random.random::<f64>() < density { factor } else { 0.0 }).collect();
    Ok(tensor.f_mul(&Tensor::f_from_slice(&mask)?.f_reshape(tensor.size())?)?)
}

/// Returns 1 for each value that has the majority's sign at its position, and 0 for the others.
fn elected(stacked: &Tensor, method: MajoritySign) -> Result<Tensor, ModelError> {
    let sign = stacked.f_sign()?;
    let total = match method {
        MajoritySign::Total => sum(stacked)?,
        MajoritySign::Frequency => sum(&sign)?,
    };
    let majority = total.f_ge(0.0)?.f_to_kind(Kind::Float)?.f_mul_scalar(2.0)?.f_add_scalar(-1.0)?;
    Ok(sign.f_eq_tensor(&majority)?.f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn rule(strategy: MergeStrategy, density: f64) -> MergeRule {
        MergeRule { strategy, density, majority_sign: MajoritySign::Total, seed: 7 }
    }

    fn merge(rows: &[(&[f32], f64)], rule: &MergeRule) -> Vec<f32> {
        let tensors: Vec<_> =
            rows.iter().map(|(row, weight)| (Tensor::from_slice(row).reshape([1, -1]), *weight)).collect();
        let merged = merged(&tensors, rule, &mut Pcg64::seed_from_u64(rule.seed)).unwrap();
        Vec::try_from(merged.reshape([-1])).unwrap()
    }

    #[test]
    fn a_linear_merge_is_the_weighted_sum() {
        let rows: [(&[f32], f64); 2] = [(&[1.0, 2.0], 0.5), (&[3.0, -4.0], 2.0)];
        assert_eq!(merge(&rows, &rule(MergeStrategy::Linear, 0.0)), [6.5, -7.0]);
        assert_eq!(merge(&rows, &rule(MergeStrategy::DareLinear, 1.0)), [6.5, -7.0]);
    }

    /// The first row keeps 4 and 2, the second -3 and 5; the sums 1, 5, 2 and 0 elect the positive sign.
    #[test]
    fn ties_keeps_the_largest_values_of_the_majority_s_sign() {
        let rows: [(&[f32], f64); 2] = [(&[4.0, -1.0, 2.0, 0.5], 0.5), (&[-3.0, 5.0, 0.1, 0.2], 2.0)];
        assert_eq!(merge(&rows, &rule(MergeStrategy::Ties, 0.5)), [2.0, 10.0, 1.0, 0.0]);
    }

    #[test]
    fn the_majority_is_counted_by_value_or_by_number() {
        let rows: [(&[f32], f64); 3] = [(&[1.0], 1.0), (&[1.0], 1.0), (&[-5.0], 1.0)];
        let total = rule(MergeStrategy::Ties, 1.0);
        assert_eq!(merge(&rows, &total), [-5.0]);
        assert_eq!(merge(&rows, &MergeRule { majority_sign: MajoritySign::Frequency, ..total }), [1.0]);
    }

    #[test]
    fn dare_keeps_random_values_whose_mean_stays() {
        let ones = vec![1.0; 10_000];
        let rows: [(&[f32], f64); 1] = [(&ones, 1.0)];
        let rule = rule(MergeStrategy::DareTies, 0.25);
        let merged = merge(&rows, &rule);
        assert!(merged.iter().all(|value| *value == 0.0 || *value == 4.0));
        let mean = merged.iter().sum::<f32>() / 10_000.0;
        // The standard deviation of the mean is √(3 / 10,000) ≈ 0.017.
        assert!((mean - 1.0).abs() < 0.1, "{mean}");
        assert_eq!(merge(&rows, &rule), merged);
        assert_ne!(merge(&rows, &MergeRule { seed: 8, ..rule }), merged);
    }

    fn adapter(rank: u32, alpha: f64, targets: &[&str]) -> LoraAdapter {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny/llama");
        let architecture = crate::io::weights::architecture(&folder).unwrap();
        let spec = attune_domain::spec::AdapterSpec::lora(rank, alpha, targets);
        LoraAdapter::new(&architecture, spec, 3, attune_domain::placement::Placement::default()).unwrap()
    }

    #[test]
    fn adapters_of_different_projections_are_united() {
        let parts = [(adapter(2, 4.0, &["q_proj"]), 0.5), (adapter(2, 4.0, &["q_proj", "down_proj"]), 0.5)];
        let merged = LoraAdapter::combine(&parts, &rule(MergeStrategy::Linear, 1.0)).unwrap();
        assert_eq!(merged.spec.target_modules, ["q_proj", "down_proj"]);
        let names = |adapter: &LoraAdapter| adapter.parameters().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&merged), names(&parts[1].0));
    }

    #[test]
    fn adapters_of_different_ranks_or_scales_are_refused() {
        for (other, want) in [
            (adapter(4, 8.0, &["q_proj"]), "the rank of the first adapter"),
            (adapter(2, 8.0, &["q_proj"]), "a scale of 2"),
        ] {
            let parts = [(adapter(2, 4.0, &["q_proj"]), 1.0), (other, 1.0)];
            let error = LoraAdapter::combine(&parts, &rule(MergeStrategy::Linear, 1.0)).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
        assert!(LoraAdapter::combine(&[], &rule(MergeStrategy::Linear, 1.0)).is_err());
    }
}
