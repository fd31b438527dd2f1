//! Compares the parsed `config.json` with the values of transformers' configuration classes:
//! `testdata/make_configs.py`. The frequencies of the same file are compared in `model`.

use std::collections::BTreeMap;

use attune_domain::{architecture::Architecture, weights};
use serde_json::Value;

#[test]
fn every_config_has_the_shapes_and_windows_of_its_class_in_transformers() {
    let file: Value = serde_json::from_str(include_str!("../testdata/configs.json")).unwrap();
    let configs = file["configs"].as_array().unwrap();
    assert!(configs.len() > 100);
    for entry in configs {
        let (config, known) = (&entry["config"], &entry["known"]);
        let what = format!("{} {config}", entry["name"]);
        let model = Architecture::from_config_json(config.to_string().as_bytes()).expect(&what);
        let first_layer = |name: &str| !name.contains(".layers.") || name.contains(".layers.0.");
        let shapes: BTreeMap<String, Vec<u64>> =
            weights::expected(&model).into_iter().filter(|(name, _)| first_layer(name)).collect();
        let wanted: BTreeMap<String, Vec<u64>> = serde_json::from_value(known["shapes"].clone()).unwrap();
        assert_eq!(shapes, wanted, "{what}");
        for (key, number) in [
            ("num_hidden_layers", model.num_hidden_layers),
            ("num_attention_heads", model.num_attention_heads),
            ("num_key_value_heads", model.num_key_value_heads),
            ("max_position_embeddings", model.max_position_embeddings),
        ] {
            assert_eq!(known[key], number, "{key} of {what}");
        }
        assert_eq!(known["rms_norm_eps"].as_f64(), Some(model.rms_norm_eps), "{what}");
        let windows: Vec<Option<u64>> = (0..model.num_hidden_layers).map(|layer| model.layers.window(layer)).collect();
        let wanted: Vec<Option<u64>> = serde_json::from_value(known["windows"].clone()).unwrap();
        assert_eq!(windows, wanted, "{what}");
    }
}
