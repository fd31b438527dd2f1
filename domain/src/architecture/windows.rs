//! The sliding windows of a `config.json`: `sliding_window`, the keys that give it to some layers only, and the list
//! `layer_types` of transformers 5.

use serde_json::Value;

use super::{
    ArchitectureError,
    bounds::MAX_POSITIONS,
    keys::{Keys, shown},
    layer_spec::LayerSpec,
};

/// The sliding window of the classes that have one, if a config does not set it.
const DEFAULT_WINDOW: u64 = 4096;

/// The first layer with a sliding window in Qwen's classes, if a config does not set it.
const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;

const WINDOW: &str = "sliding_window";
const LAYER_TYPES: &str = "layer_types";

/// Returns the sliding window of a class that has one by default; `None`: it is `null`.
pub(super) fn sliding_window(keys: Keys<'_>) -> Result<Option<u64>, ArchitectureError> {
    if keys.is_null(WINDOW) {
        return Ok(None);
    }
    Ok(Some(keys.whole(WINDOW, 1..=MAX_POSITIONS)?.unwrap_or(DEFAULT_WINDOW)))
}

/// Returns layers that all have this window. A `layer_types` list must agree.
pub(super) fn same_in_all(keys: Keys<'_>, layers: u64, window: Option<u64>) -> Result<LayerSpec, ArchitectureError> {
    if let Some(given) = keys.get(LAYER_TYPES)
        && layer_types(keys, given, layers)?.iter().any(|has_window| *has_window != window.is_some())
    {
        return Err(contradiction(keys, given, window));
    }
    Ok(LayerSpec { sliding_window: window, ..LayerSpec::default() })
}

/// Returns the layers of Qwen's classes: with `use_sliding_window`, those that `layer_types` lists have a window, or
/// without a list those from `max_window_layers` on.
pub(super) fn by_layer(keys: Keys<'_>, layers: u64) -> Result<LayerSpec, ArchitectureError> {
    let is_used = keys.truth("use_sliding_window")?.unwrap_or(false);
    let window = if is_used { sliding_window(keys)? } else { None };
    let first = keys.whole("max_window_layers", 0..=u64::MAX)?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
    let has_window: Vec<bool> = match keys.get(LAYER_TYPES) {
        None => (0..layers).map(|layer| window.is_some() && layer >= first).collect(),
        Some(given) => {
            let listed = layer_types(keys, given, layers)?;
            if window.is_none() && listed.contains(&true) {
                return Err(contradiction(keys, given, window));
            }
            listed
        }
    };
    if !has_window.contains(&true) {
        return Ok(LayerSpec::default());
    }
    let full = (0..).zip(has_window).filter(|(_, has_window)| !has_window).map(|(layer, _)| layer);
    Ok(LayerSpec { sliding_window: window, full_attention_layers: full.collect(), ..LayerSpec::default() })
}

/// Returns for each layer whether a `layer_types` list gives it a window.
fn layer_types(keys: Keys<'_>, given: &Value, layers: u64) -> Result<Vec<bool>, ArchitectureError> {
    let list = given.as_array().filter(|list| list.len() as u64 == layers);
    let list =
        list.ok_or_else(|| keys.refuse(LAYER_TYPES, shown(given), format!("a list of {layers}, one for each layer")))?;
    let kinds = list.iter().map(|kind| match kind.as_str() {
        Some("full_attention" | "attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(keys.refuse(LAYER_TYPES, shown(kind), "full_attention, sliding_attention")),
    });
    kinds.collect()
}

/// Returns the error of a `layer_types` list that the other keys contradict.
fn contradiction(keys: Keys<'_>, given: &Value, window: Option<u64>) -> ArchitectureError {
    let allowed = if window.is_some() {
        "sliding_attention in all layers"
    } else {
        "full_attention in all layers, as the other keys give no window"
    };
    keys.refuse(LAYER_TYPES, shown(given), allowed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::architecture::Architecture;

    fn read(config: &Value) -> Result<LayerSpec, String> {
        let model = Architecture::from_config_json(config.to_string().as_bytes());
        model.map(|model| model.layers).map_err(|e| e.to_string())
    }

    #[test]
    fn a_list_of_layer_types_that_the_class_contradicts_is_refused() {
        let mixed = json!(["full_attention", "sliding_attention"]);
        let qwen = |used: bool, list: &Value| {
            json!({"model_type": "qwen2", "num_hidden_layers": 2,
                "use_sliding_window": used, "layer_types": list})
        };
        let layers = read(&qwen(true, &mixed)).unwrap();
        assert_eq!((layers.window(0), layers.window(1)), (None, Some(4096)));
        assert!(read(&qwen(false, &mixed)).unwrap_err().contains("layer_types: "));
        for family in ["llama", "mistral"] {
            let refused = read(&json!({"model_type": family, "num_hidden_layers": 2, "layer_types": mixed}));
            assert!(refused.unwrap_err().starts_with("config.json: layer_types: "), "{family}");
        }
        for list in [json!(["full_attention"]), json!("full_attention"), json!(["full_attention", "chunked_attention"])]
        {
            assert!(read(&qwen(true, &list)).unwrap_err().contains("layer_types: "), "{list}");
        }
    }

    #[test]
    fn layers_before_the_first_window_have_full_attention() {
        let qwen = |first: u64| {
            json!({"model_type": "qwen3", "num_hidden_layers": 3, "use_sliding_window": true,
                "sliding_window": 8, "max_window_layers": first})
        };
        let spec = |first| read(&qwen(first)).unwrap();
        assert_eq!((spec(0).sliding_window, spec(0).full_attention_layers), (Some(8), vec![]));
        assert_eq!((spec(2).sliding_window, spec(2).full_attention_layers), (Some(8), vec![0, 1]));
        assert_eq!((spec(3).sliding_window, spec(3).full_attention_layers), (None, vec![]));
    }
}
