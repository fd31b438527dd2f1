//! The model card of an adapter: its origin, its base and the base's quantization, and how to load both.

use attune_domain::{
    export::loads_with::vllm_max_lora_rank,
    hub_origin::HubOrigin,
    license,
    run::task::TaskBase,
    spec::{AdapterSpec, Quantization},
};

use crate::session::Session;

/// Returns the text of the published folder's `README.md`.
pub(crate) fn write(session: &Session) -> String {
    let (spec, progress) = (&session.spec, &session.progress);
    let (adapter, quantization) = (&spec.train.adapter, spec.train.quantization);
    format!(
        "---\nbase_model: {base}\nlicense: {license}\nlibrary_name: peft\ntags:\n- lora\n- attune\n---\n\n\
         # A LoRA adapter for {base}\n\n\
         Made by Attune, job `{job}`: rank {rank}, alpha {alpha}, on {targets}; {steps} steps, \
         {tokens} trained tokens, seed {seed}.{history}\n{origin}\n{loading}",
        base = spec.base.name,
        license = spec.base.license.as_deref().unwrap_or(license::UNKNOWN),
        job = spec.run.job_id,
        rank = adapter.rank,
        alpha = adapter.lora_alpha,
        targets = adapter.target_modules.join(", "),
        steps = progress.step,
        tokens = progress.trained_tokens,
        seed = spec.train.seed,
        history = history(session),
        origin = base_origin(&spec.base),
        loading = loading(&spec.base.name, quantization, adapter),
    )
}

/// Returns the paragraph about the origin of the base's files, or nothing.
pub(crate) fn base_origin(TaskBase { digest, origin, .. }: &TaskBase) -> String {
    let Some(HubOrigin { host, repository, revision, commit }) = origin else { return String::new() };
    format!(
        "\nThe base was imported from `{repository}` of {host}: revision `{revision}`, commit `{commit}`. The digest \
         of its files is `{digest}`.\n"
    )
}

/// Returns the sentences about the adapter's starting point, its learning rate and its step.
fn history(session: &Session) -> String {
    let mut said = String::new();
    if let Some(first) = &session.spec.continue_from {
        said += &format!(" It continues from the adapter `{}`.", first.adapter_version_id);
    }
    if let Some(found) = session.progress.found_learning_rate {
        said += &format!(" A range test found the learning rate {found:?}.");
    }
    if let Some(step) = session.adapter_step {
        said += &format!(" It is the adapter of step {step}, whose validation loss was the lowest.");
    }
    said
}

/// Returns the section about loading the base as it was trained over, with PEFT and with vLLM.
fn loading(base: &str, quantization: Quantization, adapter: &AdapterSpec) -> String {
    format!(
        "## The base: {words}\n\n{why}\n\n\
         With PEFT:\n\n```python\n{peft}```\n\n\
         With vLLM:\n\n{vllm}",
        words = quantization.in_words(),
        why = why(quantization),
        peft = peft(base, quantization),
        vllm = vllm(base, quantization, adapter),
    )
}

const fn why(quantization: Quantization) -> &'static str {
    match quantization {
        Quantization::None => {
            "It was trained over the unquantized base. Load the base without quantization: over a quantized base the \
             adapter's output differs."
        }
        Quantization::Int8 | Quantization::Nf4 { .. } => {
            "It was trained over the quantized base and corrects its rounding errors. Load the base in the same \
             quantization: over the unquantized base, or over another quantization, the adapter's output is worse."
        }
    }
}

fn peft(base: &str, quantization: Quantization) -> String {
    let double_quant = if quantization == (Quantization::Nf4 { double_quant: true }) { "True" } else { "False" };
    let (import, config, argument) = match quantization {
        Quantization::None => ("AutoModelForCausalLM", String::new(), ""),
        Quantization::Nf4 { .. } => (
            "AutoModelForCausalLM, BitsAndBytesConfig",
            format!(
                "quantization = BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type=\"nf4\", \
                 bnb_4bit_use_double_quant={double_quant},\n    bnb_4bit_compute_dtype=torch.float32)\n"
            ),
            ", quantization_config=quantization",
        ),
        Quantization::Int8 => (
            "AutoModelForCausalLM, BitsAndBytesConfig",
            "quantization = BitsAndBytesConfig(load_in_8bit=True)\n".to_owned(),
            ", quantization_config=quantization",
        ),
    };
    // bitsandbytes' Linear8bitLt also quantizes activations, which training did not.
    let unpack = if quantization == Quantization::Int8 { "model = model.dequantize()\n" } else { "" };
    format!(
        "import torch\nfrom peft import PeftModel\nfrom transformers import {import}\n\n{config}\
         model = AutoModelForCausalLM.from_pretrained(\"{base}\", dtype=torch.float32{argument})\n{unpack}\
         model = PeftModel.from_pretrained(model, \".\")\n"
    )
}

fn vllm(base: &str, quantization: Quantization, adapter: &AdapterSpec) -> String {
    if adapter.use_dora {
        return "vLLM does not run DoRA adapters; merge it into the base with PEFT's `merge_and_unload()`.\n".into();
    }
    let (before, model) = match quantization {
        Quantization::None => ("", base),
        Quantization::Nf4 { .. } | Quantization::Int8 => (
            "save the quantized base once, with `model.save_pretrained(\"./base\")` above, before the adapter is \
             loaded; then\n\n",
            "./base",
        ),
    };
    format!(
        "{before}```sh\nvllm serve {model} --enable-lora --max-lora-rank {rank} --lora-modules adapter=.\n```\n",
        rank = vllm_max_lora_rank(adapter.rank),
    )
}

#[cfg(test)]
mod tests {
    use attune_domain::digest::Sha256;

    use super::*;

    #[test]
    fn the_card_names_the_bases_quantization_and_how_to_load_it() {
        let lora = AdapterSpec::lora(12, 24.0, &["q_proj"]);
        for (quantization, heading, config) in [
            (
                Quantization::Nf4 { double_quant: true },
                "NF4 with double quantization",
                "bnb_4bit_use_double_quant=True",
            ),
            (Quantization::Nf4 { double_quant: false }, "NF4", "bnb_4bit_use_double_quant=False"),
            (Quantization::Int8, "int8", "load_in_8bit=True"),
        ] {
            let text = loading("tiny", quantization, &lora);
            assert!(text.starts_with(&format!("## The base: {heading}\n")), "{text}");
            assert!(text.contains(config) && text.contains("quantization_config=quantization"), "{text}");
            assert!(text.contains("vllm serve ./base --enable-lora --max-lora-rank 16"), "{text}");
        }
        let plain = loading("tiny", Quantization::None, &lora);
        assert!(!plain.contains("BitsAndBytesConfig") && plain.contains("vllm serve tiny "), "{plain}");
        let mut base = TaskBase {
            files: vec![],
            digest: Sha256::from_digest([0xd1; 32]),
            name: "tiny".into(),
            origin: None,
            license: None,
        };
        assert_eq!(base_origin(&base), "");
        base.origin = Some(HubOrigin {
            host: "huggingface.co".into(),
            repository: "a/b".into(),
            revision: "main".into(),
            commit: "c".repeat(40),
        });
        let text = base_origin(&base);
        assert!(text.contains("`a/b` of huggingface.co: revision `main`, commit `cccc"), "{text}");
        let dora = loading("tiny", Quantization::None, &AdapterSpec { use_dora: true, ..lora });
        assert!(dora.contains("does not run DoRA"), "{dora}");
    }
}
