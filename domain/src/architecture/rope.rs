//! The rotary embedding of a `config.json`: `rope_scaling` of transformers 4 or `rope_parameters` of transformers 5,
//! and the older locations of their keys.
//!
//! Source: `RotaryEmbeddingConfigMixin` and `_compute_…_parameters` in transformers' `modeling_rope_utils.py`, 5.23.

use std::fmt;

use super::{
    ArchitectureError, RopeScaling,
    bounds::{MAX_POSITIONS, MAX_ROPE_FACTOR, MAX_ROPE_THETA, MIN_ROPE_FACTOR, MIN_ROPE_THETA},
    keys::{Keys, agreed, shown},
};

/// The base of the frequencies, if a config does not set it. Source: `default_theta` of the mixin.
const DEFAULT_THETA: f64 = 10_000.0;

/// The supported scaling types.
const KINDS: &str = "default, linear, dynamic, llama3, yarn";

/// Parses the base of the frequencies and their scaling.
pub(super) fn read(config: Keys<'_>, positions: u64) -> Result<(f64, Option<RopeScaling>), ArchitectureError> {
    let places = [config.object("rope_scaling")?, config.object("rope_parameters")?];
    let objects = || places.into_iter().flatten();
    let theta = |keys: Keys<'_>| {
        Ok::<_, ArchitectureError>((keys.name("rope_theta"), keys.real("rope_theta", MIN_ROPE_THETA..=MAX_ROPE_THETA)?))
    };
    let thetas = objects().chain([config]).map(theta).collect::<Result<Vec<_>, _>>()?;
    for keys in objects().chain([config]) {
        refuse_partial(keys)?;
    }
    let scalings = objects()
        .map(|keys| Ok((keys.path.to_owned(), kind_of(keys, config, positions)?)))
        .collect::<Result<Vec<_>, ArchitectureError>>()?;
    let scaling = agreed(scalings)?.and_then(|Kind(scaling)| scaling);
    Ok((agreed(thetas)?.unwrap_or(DEFAULT_THETA), scaling))
}

/// A scaling, or `default` for none.
#[derive(PartialEq)]
struct Kind(Option<RopeScaling>);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(&self.0).map_err(|_| fmt::Error)?;
        f.write_str(if self.0.is_none() { "default" } else { &text })
    }
}

/// Refuses partial rotation, which the libraries that read this key compute differently.
fn refuse_partial(keys: Keys<'_>) -> Result<(), ArchitectureError> {
    match keys.get("partial_rotary_factor") {
        Some(given) if given.as_f64() != Some(1.0) => {
            Err(keys.refuse("partial_rotary_factor", shown(given), "1: rotary embeddings cover the head"))
        }
        _ => Ok(()),
    }
}

/// Parses the scaling of one object; `None` if it has no type. `type` is the older name of `rope_type`.
fn kind_of(keys: Keys<'_>, config: Keys<'_>, positions: u64) -> Result<Option<Kind>, ArchitectureError> {
    if let Some((layers, given)) = keys.map.iter().find(|(_, value)| value.is_object()) {
        return Err(keys.refuse(layers, shown(given), "one setting for all layers"));
    }
    let kind = ["rope_type", "type"].map(|key| Ok((keys.name(key), keys.text(key)?)));
    let kind = agreed(kind.into_iter().collect::<Result<Vec<_>, ArchitectureError>>()?)?;
    Ok(Some(Kind(match kind {
        None if keys.get("factor").is_none() => return Ok(None),
        None => return Err(keys.refuse("rope_type", "none", format!("{KINDS} (a 'factor' is set)"))),
        Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: needed(keys, "factor")? }),
        Some("dynamic") => Some(RopeScaling::Dynamic { factor: needed(keys, "factor")? }),
        Some("llama3") => Some(llama3(keys, config, positions)?),
        Some("yarn") => Some(yarn(keys, config, positions)?),
        Some(other) => return Err(keys.refuse("rope_type", shown(&other.into()), KINDS)),
    })))
}

fn coefficient(keys: Keys<'_>, key: &str) -> Result<Option<f64>, ArchitectureError> {
    keys.real(key, MIN_ROPE_FACTOR..=MAX_ROPE_FACTOR)
}

fn needed(keys: Keys<'_>, key: &str) -> Result<f64, ArchitectureError> {
    coefficient(keys, key)?.ok_or_else(|| ArchitectureError::Missing(keys.name(key)))
}

/// Returns the context length of pretraining; some configs set it next to the object, and without it it is the whole
/// context.
fn original(keys: Keys<'_>, config: Keys<'_>, positions: u64) -> Result<u64, ArchitectureError> {
    const KEY: &str = "original_max_position_embeddings";
    let place = |keys: Keys<'_>| Ok((keys.name(KEY), keys.whole(KEY, 1..=MAX_POSITIONS)?));
    let places = [place(keys), place(config)].into_iter().collect::<Result<Vec<_>, ArchitectureError>>()?;
    Ok(agreed(places)?.unwrap_or(positions))
}

fn llama3(keys: Keys<'_>, config: Keys<'_>, positions: u64) -> Result<RopeScaling, ArchitectureError> {
    let (low_freq_factor, high_freq_factor) = (needed(keys, "low_freq_factor")?, needed(keys, "high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        let allowed = format!("a number above low_freq_factor, which is {low_freq_factor}");
        return Err(keys.refuse("high_freq_factor", high_freq_factor, allowed));
    }
    Ok(RopeScaling::Llama3 {
        factor: needed(keys, "factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original(keys, config, positions)?,
    })
}

fn yarn(keys: Keys<'_>, config: Keys<'_>, positions: u64) -> Result<RopeScaling, ArchitectureError> {
    let original_max_position_embeddings = original(keys, config, positions)?;
    // A `null` here means the ratio of the contexts; only a missing key is an error.
    let ratio = || keys.is_null("factor").then_some(positions as f64 / original_max_position_embeddings as f64);
    let factor = coefficient(keys, "factor")?.or_else(ratio);
    let factor = factor.ok_or_else(|| ArchitectureError::Missing(keys.name("factor")))?;
    let beta_fast = coefficient(keys, "beta_fast")?.unwrap_or(32.0);
    let beta_slow = coefficient(keys, "beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(keys.refuse("beta_fast", beta_fast, format!("at least beta_slow, which is {beta_slow}")));
    }
    let magnitude = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let scales = (scale(keys, "mscale")?, scale(keys, "mscale_all_dim")?);
    let attention_factor = match (coefficient(keys, "attention_factor")?, scales) {
        (Some(given), _) => given,
        (None, (Some(one), Some(all))) => magnitude(one) / magnitude(all),
        (None, _) => magnitude(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate: keys.truth("truncate")?.unwrap_or(true),
        original_max_position_embeddings,
    })
}

/// Reads `mscale` or `mscale_all_dim`, where 0 counts as not set.
fn scale(keys: Keys<'_>, key: &str) -> Result<Option<f64>, ArchitectureError> {
    Ok(keys.real(key, 0.0..=MAX_ROPE_FACTOR)?.filter(|scale| *scale > 0.0))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::{Value, json};

    use super::*;
    use crate::architecture::Architecture;

    fn scaled(field: &str, value: &Value) -> Result<Architecture, String> {
        let mut config = json!({"model_type": "llama", "max_position_embeddings": 4096});
        config[field] = value.clone();
        Architecture::from_config_json(config.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn case_04_rope_type_under_two_names_is_taken() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cases/04-rope-type-said-twice");
        let read = |name: &str| {
            let text = fs::read(folder.join(format!("config.{name}.json"))).unwrap();
            Architecture::from_config_json(&text).map(|model| model.rope_scaling).map_err(|e| e.to_string())
        };
        let linear = Ok(Some(RopeScaling::Linear { factor: 4.0 }));
        assert_eq!(read("linear-once"), linear);
        assert_eq!(read("linear"), linear);
        assert!(matches!(
            read("llama3"),
            Ok(Some(RopeScaling::Llama3 { factor: 8.0, original_max_position_embeddings: 2048, .. }))
        ));
        assert_eq!(read("default"), Ok(None));
        assert_eq!(
            read("disagree").unwrap_err(),
            "config.json: 'rope_scaling.rope_type' is llama3, but 'rope_scaling.type' is linear: two names of one \
             setting must have the same value"
        );
    }

    #[test]
    fn case_04_every_setting_of_two_names_is_taken_once_or_refused_with_both() {
        let taken = |config: Value| Architecture::from_config_json(config.to_string().as_bytes());
        let linear = json!({"type": "linear", "factor": 2.0});
        let both = |new: Value| json!({"model_type": "llama", "rope_scaling": linear, "rope_parameters": new});
        for new in [
            json!({"rope_type": "linear", "factor": 2}),
            json!({"rope_theta": 1e6}),
            json!({"rope_type": "linear", "type": "linear", "factor": 2.0, "rope_theta": 1e6}),
        ] {
            let model = taken(both(new)).unwrap();
            assert_eq!(model.rope_scaling, Some(RopeScaling::Linear { factor: 2.0 }));
        }
        let refused = taken(both(json!({"rope_type": "default"}))).unwrap_err().to_string();
        assert!(
            refused
                .contains(r#"'rope_scaling' is {"rope_type":"linear","factor":2.0}, but 'rope_parameters' is default"#),
            "{refused}"
        );
        let theta =
            |inner: f64| json!({"model_type": "llama", "rope_theta": 1e4, "rope_parameters": {"rope_theta": inner}});
        assert_eq!(taken(theta(1e4)).unwrap().rope_theta, 1e4);
        let refused = taken(theta(1e6)).unwrap_err().to_string();
        assert!(refused.contains("'rope_parameters.rope_theta' is 1000000, but 'rope_theta' is 10000"), "{refused}");
        let original = |outer: u64| {
            json!({"model_type": "llama", "original_max_position_embeddings": outer, "rope_scaling":
                {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}})
        };
        taken(original(512)).unwrap();
        let refused = taken(original(256)).unwrap_err().to_string();
        assert!(refused.contains("'rope_scaling.original_max_position_embeddings' is 512, but"), "{refused}");
    }

    #[test]
    fn limit_config_rope_numbers_are_refused_beyond_their_bounds() {
        for theta in [0.0, -1.0, 1.0, 1e13, 1e300] {
            let refused = scaled("rope_theta", &json!(theta)).unwrap_err();
            assert!(
                refused.contains("rope_theta: ") && refused.ends_with("a number, 10.0 to 1000000000000.0"),
                "{refused}"
            );
        }
        for theta in [MIN_ROPE_THETA, MAX_ROPE_THETA] {
            assert_eq!(scaled("rope_theta", &json!(theta)).unwrap().rope_theta, theta);
        }
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let yarn =
            json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1});
        for good in [llama3, yarn] {
            scaled("rope_scaling", &good).unwrap();
            for key in good.as_object().unwrap().keys().filter(|key| *key != "rope_type") {
                for number in
                    [json!(0), json!(-4.0), json!(MIN_ROPE_FACTOR / 2.0), json!(2.0 * MAX_ROPE_FACTOR), json!("4")]
                {
                    let mut bad = good.clone();
                    bad[key] = number.clone();
                    let refused = scaled("rope_scaling", &bad).unwrap_err();
                    assert!(
                        refused.starts_with(&format!("config.json: rope_scaling.{key}: {}", shown(&number))),
                        "{refused}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_kind_that_is_not_computed_is_refused_by_name() {
        for kind in ["longrope", "su", "proportional", "mrope", "ntk"] {
            let refused = scaled("rope_scaling", &json!({"type": kind, "factor": 2.0})).unwrap_err();
            let said = format!(
                "rope_scaling.rope_type: {kind} is not supported; allowed: default, linear, dynamic, llama3, yarn"
            );
            assert!(refused.ends_with(&said), "{refused}");
        }
        let refused = scaled("rope_scaling", &json!({"factor": 2.0})).unwrap_err();
        assert!(refused.contains("rope_scaling.rope_type: none is not supported"), "{refused}");
        let refused = scaled("rope_parameters", &json!({"full_attention": {"rope_type": "default"}})).unwrap_err();
        assert!(refused.contains("rope_parameters.full_attention: "), "{refused}");
        let missing = scaled("rope_scaling", &json!({"type": "yarn"})).unwrap_err();
        assert_eq!(missing, "config.json has no 'rope_scaling.factor'");
    }

    #[test]
    fn numbers_that_are_not_given_are_worked_out() {
        let Some(RopeScaling::Yarn { factor, attention_factor, original_max_position_embeddings, .. }) =
            scaled("rope_scaling", &json!({"type": "yarn", "factor": 4.0})).unwrap().rope_scaling
        else {
            panic!("no yarn");
        };
        assert_eq!((factor, original_max_position_embeddings), (4.0, 4096));
        assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);
        let ratio = json!({"type": "yarn", "factor": null, "original_max_position_embeddings": 1024});
        let model = scaled("rope_scaling", &ratio).unwrap();
        assert!(matches!(model.rope_scaling, Some(RopeScaling::Yarn { factor: 4.0, .. })));
        assert_eq!(scaled("rope_scaling", &json!({})).unwrap().rope_scaling, None);
        assert_eq!(scaled("rope_scaling", &json!(null)).unwrap().rope_theta, 10_000.0);
    }
}
