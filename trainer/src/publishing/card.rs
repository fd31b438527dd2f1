//! The model card of an adapter: where it comes from, which base it corrects in which quantization, and how others load
//! the two.

use attune_domain::spec::{AdapterSpec, Quantization};

use crate::session::Session;

/// The text of `README.md` in a published folder.
pub(crate) fn write(session: &Session) -> String {
    let (spec, progress) = (&session.spec, &session.progress);
    let (adapter, quantization) = (&spec.train.adapter, spec.train.quantization);
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\ntags:\n- lora\n- attune\n---\n\n\
         # A LoRA adapter for {base}\n\n\
         Made by Attune, job `{job}`: rank {rank}, alpha {alpha}, on {targets}; {steps} steps, \
         {tokens} trained tokens, seed {seed}.{history}\n\n{loading}",
        base = spec.base_name,
        job = spec.job_id,
        rank = adapter.rank,
        alpha = adapter.lora_alpha,
        targets = adapter.target_modules.join(", "),
        steps = progress.step,
        tokens = progress.trained_tokens,
        seed = spec.train.seed,
        history = history(session),
        loading = loading(&spec.base_name, quantization, adapter),
    )
}

/// Where the adapter began, and where it was left.
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

/// How the base is loaded as it was trained over, in PEFT and in vLLM.
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
            "It was trained over the base's weights as they are, without quantization. Load the base so: over a quantized \
             one the adapter answers otherwise."
        }
        Quantization::Int8 | Quantization::Nf4 { .. } => {
            "It was trained over the quantized base, whose rounding it has learnt to correct. Load the base so: over the \
             weights as they are, or over another quantization, the adapter answers otherwise and worse."
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
    // Linear8bitLt rounds what it multiplies too, and training did not.
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
            "save the quantized base once, with `model.save_pretrained(\"./base\")` above, before the adapter is loaded; \
             then\n\n",
            "./base",
        ),
    };
    format!(
        "{before}```sh\nvllm serve {model} --enable-lora --max-lora-rank {rank} --lora-modules adapter=.\n```\n",
        rank = max_lora_rank(adapter.rank),
    )
}

/// The smallest rank that vLLM's `--max-lora-rank` takes and that holds this one.
fn max_lora_rank(rank: u32) -> u32 {
    [8, 16, 32, 64, 128, 256].into_iter().find(|most| rank <= *most).unwrap_or(rank)
}

#[cfg(test)]
mod tests {
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
        let dora = loading("tiny", Quantization::None, &AdapterSpec { use_dora: true, ..lora });
        assert!(dora.contains("does not run DoRA"), "{dora}");
    }
}
