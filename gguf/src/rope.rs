//! The conversion of a GGUF file's rotary embedding to `rope_parameters` of a `config.json`.
//!
//! Source: `load_hparams` in llama.cpp's `llama-model.cpp` for the keys and their defaults, `llama-context.cpp` for
//! YaRN's magnitude; `convert_hf_to_gguf.py` for Llama 3's `rope_freqs`.

use serde_json::{Map, Value, json};

use crate::error::ImportError;
use crate::source::{Source, dequantise};

/// The base of the frequencies, if a file does not set it.
const DEFAULT_THETA: f64 = 10_000.0;

/// Returns the base of the frequencies.
pub(crate) fn theta(source: &Source, arch: &str) -> Result<f64, ImportError> {
    Ok(source.real(&format!("{arch}.rope.freq_base"))?.unwrap_or(DEFAULT_THETA))
}

/// Returns `rope_type` and its parameters.
pub(crate) fn scaling(
    source: &mut Source,
    arch: &str,
    theta: f64,
    head_dim: u64,
) -> Result<Map<String, Value>, ImportError> {
    let object = |value: Value| value.as_object().cloned().unwrap_or_default();
    if let Some(freqs) = source.tensor("rope_freqs.weight") {
        let raw = source.raw_rows(&freqs, 0..freqs.rows())?;
        let factors = dequantise(freqs.kind, &raw, usize::try_from(freqs.shape.iter().product::<u64>()).unwrap_or(0))?;
        if factors.iter().all(|factor| (factor - 1.0).abs() < 1e-6) {
            return Ok(object(json!({"rope_type": "default"})));
        }
        return llama3(&factors, theta, head_dim).map(object).ok_or_else(|| {
            ImportError::Unsupported(
                "rope_freqs.weight is not Llama 3's scaling, the only one that is supported".into(),
            )
        });
    }
    let factor = factor(source, arch)?;
    let kind_key = format!("{arch}.rope.scaling.type");
    match source.word(&kind_key)? {
        Some("none") => Ok(object(json!({"rope_type": "default"}))),
        // A file with only a factor means linear scaling.
        None | Some("linear") if factor == 1.0 => Ok(object(json!({"rope_type": "default"}))),
        None | Some("linear") => Ok(object(json!({"rope_type": "linear", "factor": factor}))),
        Some("yarn") => yarn(source, arch, factor).map(object),
        Some(other) => Err(ImportError::Unsupported(format!(
            "{kind_key} '{other}' is not supported; allowed: none, linear, yarn, Llama 3's rope_freqs"
        ))),
    }
}

/// Returns the factor, which older files have under another name; 0 means none.
fn factor(source: &Source, arch: &str) -> Result<f64, ImportError> {
    let [new, old] = ["rope.scaling.factor", "rope.scale_linear"].map(|name| format!("{arch}.{name}"));
    let read = |key: &str| Ok::<_, ImportError>(source.real(key)?.filter(|factor| *factor != 0.0));
    match (read(&new)?, read(&old)?) {
        (Some(one), Some(other)) if one != other => Err(ImportError::Unsupported(format!(
            "'{new}' is {one}, but '{old}' is {other}: two names of one setting must have the same value"
        ))),
        (one, other) => Ok(one.or(other).unwrap_or(1.0)),
    }
}

/// Returns YaRN's parameters. Its attention factor is computed from the factor, in llama.cpp as in transformers.
fn yarn(source: &Source, arch: &str, factor: f64) -> Result<Value, ImportError> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    for (name, neutral) in
        [("attn_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)]
    {
        if let Some(given) = source.real(&key(name))?.filter(|given| *given != neutral) {
            let name = key(name);
            return Err(ImportError::Unsupported(format!("{name} {given} is not supported; allowed: {neutral}")));
        }
    }
    let mut yarn = json!({"rope_type": "yarn", "factor": factor});
    if let Some(original) = source.whole(&key("original_context_length"))? {
        yarn["original_max_position_embeddings"] = original.into();
    }
    for (name, ours) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(beta) = source.real(&key(name))? {
            yarn[ours] = beta.into();
        }
    }
    Ok(yarn)
}

/// Returns Llama 3's parameters that result in the factors that llama.cpp stored: each candidate is tried, and one must
/// reproduce the factors.
fn llama3(factors: &[f32], theta: f64, head_dim: u64) -> Option<Value> {
    if factors.len() as u64 != head_dim / 2 {
        return None;
    }
    let factor = f64::from(factors.iter().copied().fold(1.0_f32, f32::max));
    let (low, high) = (1.0, 4.0);
    (10..=18).map(|power| (1_u64 << power) as f64).find_map(|original| {
        let same = factors.iter().enumerate().all(|(i, found)| {
            let wanted = llama3_factor(i, theta, head_dim, [factor, low, high, original]);
            (f64::from(*found) - wanted).abs() <= 1e-3 * wanted
        });
        same.then(|| {
            json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as u64})
        })
    })
}

/// Returns the divisor of frequency `i`. Source: `_compute_llama3_parameters` in transformers'
/// `modeling_rope_utils.py`.
pub(crate) fn llama3_factor(i: usize, theta: f64, head_dim: u64, [factor, low, high, original]: [f64; 4]) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
    if wavelength < original / high {
        1.0
    } else if wavelength > original / low {
        factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_parameters_are_found_from_their_factors() {
        for (factor, original) in [(8.0, 8192.0), (32.0, 8192.0), (4.0, 32768.0)] {
            let factors: Vec<f32> =
                (0..32).map(|i| llama3_factor(i, 500_000.0, 64, [factor, 1.0, 4.0, original]) as f32).collect();
            let found = llama3(&factors, 500_000.0, 64).unwrap();
            assert_eq!(found["factor"], json!(factor));
            assert_eq!(found["original_max_position_embeddings"], json!(original as u64));
        }
    }

    #[test]
    fn other_factors_are_not_taken_for_llama_3s() {
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 / 7.0).collect();
        assert!(llama3(&factors, 500_000.0, 64).is_none());
    }
}
