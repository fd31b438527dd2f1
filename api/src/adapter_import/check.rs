//! The checks of an uploaded adapter: a config that Attune supports, exactly the tensors that this config implies for
//! the base model, in the expected shapes, only finite values, and the base model that the adapter was trained on.

use std::collections::BTreeMap;

use attune_domain::{
    digest::Sha256,
    manifest,
    peft::{self, CONFIG, TENSORS},
    spec::{AdapterSpec, Quantization},
    text::text_file::model_document,
};
use attune_process::error_chain::chain;
use attune_store::adapters::base_model::BaseModel;
use attune_text::{model::adapter_template_in, template::ChatTemplate};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{adapter_import::form::Brought, error::ApiError, http::path_id::truncated};

/// The maximum number of reasons that are listed; further ones are only counted.
const MOST_REASONS: usize = 100;

/// The properties of an adapter that passed the checks.
#[derive(Debug)]
pub struct Checked {
    /// The adapter's specification, from its PEFT config.
    pub spec: AdapterSpec,
    /// The quantization of the base that it was trained over.
    pub quantization: Quantization,
    /// The uploaded manifest, if the folder has one.
    pub manifest: Option<Value>,
    /// The SHA-256 of the adapter's own chat template, if it has one.
    pub template_sha256: Option<Sha256>,
}

/// Checks the uploaded files against the base model. The caller has already checked their tokens
/// (`adapter_import::tokens`).
///
/// # Errors
/// [`ApiError::Invalid`] with all reasons, one per line.
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
                "{CONFIG}: base_model_name_or_path is '{theirs}', but the base is '{}'. If they are the same model, \
                 set 'base_digest' to the base's digest",
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

/// Returns the quantization of the base that the adapter was trained over: that of the form, else that of the manifest,
/// else the default.
fn quantization(brought: &Brought, manifest: Option<&Value>, reasons: &mut Vec<String>) -> Quantization {
    let given = brought.quantization.as_deref().map(|name| (name, Quantization::from_name(name)));
    if let Some((name, None)) = given {
        let allowed = Quantization::ALL.map(Quantization::name).join(", ");
        reasons.push(format!("Invalid 'quantization': '{}'. Use one of {allowed}", truncated(name)));
    }
    let given = given.and_then(|(_, known)| known);
    let in_manifest = manifest.and_then(quantization_of);
    if let (Some(given), Some(trained)) = (given, in_manifest)
        && given != trained
    {
        reasons.push(format!(
            "'quantization' is {given}, but {} states that the adapter was trained over {trained}",
            manifest::FILE
        ));
    }
    given.or(in_manifest).unwrap_or_default()
}

/// Returns the quantization in a manifest that Attune wrote. Manifests of earlier releases have it only in
/// `origin.train`.
fn quantization_of(manifest: &Value) -> Option<Quantization> {
    let places = ["/base_model/quantization", "/origin/train/quantization"];
    places.iter().find_map(|place| Quantization::deserialize(manifest.pointer(place)?).ok())
}

/// Returns whether the form or the manifest identifies the base model by its digest. A digest other than the base's
/// adds a reason.
fn base_digest(brought: &Brought, base: &BaseModel, manifest: Option<&Value>, reasons: &mut Vec<String>) -> bool {
    let (given, digest) = (brought.base_digest.as_deref(), base.digest.to_string());
    if let Some(given) = given.filter(|given| *given != digest) {
        let shown = truncated(given);
        reasons.push(format!("'base_digest' is {shown}, but the digest of '{}' is {digest}", base.name));
    }
    let made_for = manifest.and_then(|manifest| manifest["base_model"]["digest"].as_str());
    if let Some(made_for) = made_for.filter(|made_for| *made_for != digest) {
        let shown = truncated(made_for);
        reasons.push(format!(
            "{} states a base model with the digest {shown}, but the digest of '{}' is {digest}",
            manifest::FILE,
            base.name,
        ));
    }
    given.is_some() || made_for.is_some()
}

/// Reads the manifest, if the folder has one. A file that differs from its entry in the manifest adds a reason.
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
    tracing::debug!(base = base.name, "an import has a manifest");
    for entry in manifest["files"].as_array().into_iter().flatten() {
        let name = entry["name"].as_str().unwrap_or("");
        let Some(file) = brought.files.iter().find(|file| file.name == name) else { continue };
        if entry["sha256"] != file.arrived.sha256.to_string() {
            reasons.push(format!("{name} differs from its entry in {}", manifest::FILE));
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
    // The comparison needs the config, which gives the expected tensors, and the header, which gives the actual ones.
    if let Some(spec) = spec.filter(|_| !scanned.tensors.is_empty()) {
        reasons.extend(peft::mismatches(peft::expected(&base.architecture, spec), &scanned.tensors));
    }
}

/// Compiles the adapter's own chat template, with which chat requests to the adapter are rendered.
fn template(brought: &Brought, reasons: &mut Vec<String>) -> Option<Sha256> {
    let source = adapter_template_in(&|name| Ok(brought.text(name).map(<[u8]>::to_vec)));
    let template = source.and_then(|source| source.map(|text| ChatTemplate::new(&text, BTreeMap::new())).transpose());
    match template {
        Ok(template) => template.map(|template| template.sha256()),
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
    let message = format!("The adapter was rejected for {heading}. Nothing was stored.\n{}", reasons.join("\n"));
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
