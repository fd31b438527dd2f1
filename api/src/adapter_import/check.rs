//! What is asked of a brought adapter: a config that Attune runs, the very tensors that it speaks of in the shapes that its
//! base needs, numbers that are numbers, and that this base is the one that it was made for.

use std::collections::BTreeMap;

use attune_domain::{
    manifest,
    peft::{self, CONFIG, TENSORS},
    spec::{AdapterSpec, Quantization},
    text::text_file::model_document,
};
use attune_store::adapters::base_model::BaseModel;
use attune_text::{model::adapter_template_in, template::ChatTemplate};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    adapter_import::form::Brought,
    error::{ApiError, chain},
    http::path_id::shown,
};

/// More reasons than these are only counted.
const MOST_REASONS: usize = 100;

/// What is known of a brought adapter that is taken.
#[derive(Debug)]
pub struct Checked {
    /// Its shape.
    pub spec: AdapterSpec,
    /// The quantization of the base that it was trained over.
    pub quantization: Quantization,
    /// Its manifest, if it has one.
    pub manifest: Option<Value>,
    /// Of the text of its own chat template, if it has one.
    pub template_sha256: Option<String>,
}

/// Checks what was brought against the base that it is for; its tokens are judged before, by `tokens::judge`.
///
/// # Errors
/// [`ApiError::Invalid`] with every reason, one a line.
pub fn check(brought: &Brought, base: &BaseModel) -> Result<Checked, ApiError> {
    let mut reasons = brought.reasons.clone();
    let manifest = manifest_of(brought, base, &mut reasons);
    let quantization = quantization(brought, manifest.as_ref(), &mut reasons);
    let config = config_of(brought, &mut reasons);
    let vouched = base_digest(brought, base, manifest.as_ref(), &mut reasons);
    if let Some(config) = &config {
        let theirs = config.base_model.as_deref().unwrap_or("");
        if !vouched && !peft::same_base_name(theirs, &base.name) {
            reasons.push(format!(
                "{CONFIG}: base_model_name_or_path is '{theirs}', and the base is '{}'; if that is the same model, say so \
                 with its digest in 'base_digest'",
                base.name
            ));
        }
    }
    tensors(brought, base, config.as_ref().map(|config| &config.spec), &mut reasons);
    let template_sha256 = template(brought, &mut reasons);
    match config {
        Some(config) if reasons.is_empty() => {
            Ok(Checked { spec: config.spec, quantization, manifest, template_sha256 })
        }
        _ => Err(refused(reasons)),
    }
}

fn config_of(brought: &Brought, reasons: &mut Vec<String>) -> Option<peft::PeftConfig> {
    let Some(text) = brought.text(CONFIG) else {
        if !reasons.iter().any(|reason| reason.starts_with(CONFIG)) {
            reasons.push(format!("There is no {CONFIG} among the files"));
        }
        return None;
    };
    let read = model_document(text).and_then(|text| serde_json::from_slice(text).map_err(|why| why.to_string()));
    let fields: Map<String, Value> = match read {
        Ok(fields) => fields,
        Err(why) => {
            reasons.push(format!("{CONFIG} is not a JSON object: {why}"));
            return None;
        }
    };
    match peft::read(fields) {
        Ok(config) => Some(config),
        Err(refused) => {
            reasons.extend(refused.iter().map(ToString::to_string));
            None
        }
    }
}

/// The quantization of the base that the adapter was trained over: what the form says, or the manifest; else none.
fn quantization(brought: &Brought, manifest: Option<&Value>, reasons: &mut Vec<String>) -> Quantization {
    let given = brought.quantization.as_deref().map(|name| (name, Quantization::from_name(name)));
    if let Some((name, None)) = given {
        let allowed = Quantization::ALL.map(Quantization::name).join(", ");
        reasons.push(format!("'quantization' is {}, and it must be one of {allowed}", shown(name)));
    }
    let given = given.and_then(|(_, known)| known);
    let in_manifest = manifest.and_then(quantization_of);
    if let (Some(given), Some(trained)) = (given, in_manifest)
        && given != trained
    {
        reasons.push(format!(
            "'quantization' is {given}, and {} says that the adapter was trained over {trained}",
            manifest::FILE
        ));
    }
    given.or(in_manifest).unwrap_or_default()
}

/// What a manifest of ours says; those of earlier releases have it in the training's numbers alone.
fn quantization_of(manifest: &Value) -> Option<Quantization> {
    let places = ["/base_model/quantization", "/origin/train/quantization"];
    places.iter().find_map(|place| Quantization::deserialize(manifest.pointer(place)?).ok())
}

/// Whether somebody says by its digest that the base is the right one.
fn base_digest(brought: &Brought, base: &BaseModel, manifest: Option<&Value>, reasons: &mut Vec<String>) -> bool {
    let given = brought.base_digest.as_deref();
    if let Some(given) = given.filter(|given| *given != base.digest) {
        let shown = shown(given);
        reasons.push(format!("'base_digest' is {shown}, and the digest of '{}' is {}", base.name, base.digest));
    }
    let made_for = manifest.and_then(|manifest| manifest["base_model"]["digest"].as_str());
    if let Some(made_for) = made_for.filter(|made_for| *made_for != base.digest) {
        let shown = shown(made_for);
        reasons.push(format!(
            "{} says that it was made for a base with the digest {shown}, and that of '{}' is {}",
            manifest::FILE,
            base.name,
            base.digest
        ));
    }
    given.is_some() || made_for.is_some()
}

/// A manifest that is there must speak of these files.
fn manifest_of(brought: &Brought, base: &BaseModel, reasons: &mut Vec<String>) -> Option<Value> {
    let text = brought.text(manifest::FILE)?;
    let read = model_document(text).and_then(|text| serde_json::from_slice(text).map_err(|why| why.to_string()));
    let manifest: Value = match read {
        Ok(manifest @ Value::Object(_)) => manifest,
        Ok(_) => {
            reasons.push(format!("{} is not a JSON object", manifest::FILE));
            return None;
        }
        Err(why) => {
            reasons.push(format!("{} is not JSON: {why}", manifest::FILE));
            return None;
        }
    };
    tracing::debug!(base = base.name, "an import brings a manifest");
    for entry in manifest["files"].as_array().into_iter().flatten() {
        let name = entry["name"].as_str().unwrap_or("");
        let Some(file) = brought.files.iter().find(|file| file.name == name) else { continue };
        if entry["sha256"] != file.arrived.sha256.as_str() {
            reasons.push(format!("{name} is not the file that {} speaks of", manifest::FILE));
        }
    }
    Some(manifest)
}

fn tensors(brought: &Brought, base: &BaseModel, spec: Option<&AdapterSpec>, reasons: &mut Vec<String>) {
    let Some(scanned) = &brought.tensors else {
        reasons.push(format!("There is no {TENSORS} among the files"));
        return;
    };
    reasons.extend(scanned.reasons.iter().cloned());
    // Without a config nobody knows which tensors there should be, and without a header which there are.
    if let Some(spec) = spec.filter(|_| !scanned.tensors.is_empty()) {
        reasons.extend(peft::mismatches(peft::expected(&base.architecture, spec), &scanned.tensors));
    }
}

/// Answers are asked for with the template that travels with the adapter.
fn template(brought: &Brought, reasons: &mut Vec<String>) -> Option<String> {
    let source = adapter_template_in(&|name| Ok(brought.text(name).map(<[u8]>::to_vec)));
    let template = source.and_then(|source| source.map(|text| ChatTemplate::new(&text, BTreeMap::new())).transpose());
    match template {
        Ok(template) => template.map(|template| template.sha256().to_owned()),
        Err(why) => {
            reasons.push(format!("The adapter's chat template cannot be used: {}", chain(&why)));
            None
        }
    }
}

fn refused(mut reasons: Vec<String>) -> ApiError {
    let count = reasons.len();
    if count > MOST_REASONS {
        reasons.truncate(MOST_REASONS);
        reasons.push(format!("… and {} more", count - MOST_REASONS));
    }
    let heading = if count == 1 { "1 reason".to_owned() } else { format!("{count} reasons") };
    let message = format!("The adapter was not taken, for {heading}. Nothing was kept.\n{}", reasons.join("\n"));
    ApiError::Invalid { param: Some("files".into()), code: "invalid_adapter", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_reasons_beyond_a_hundred_are_counted() {
        let message = refused((0..5000).map(|i| format!("reason {i}")).collect()).to_string();
        assert!(message.contains("reason 99") && message.contains("and 4900 more"), "{message}");
        assert!(!message.contains("reason 100"), "{message}");
    }
}
