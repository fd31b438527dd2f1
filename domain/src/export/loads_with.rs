//! The programs that load an export, and those that do not, with reasons.

use serde::{Deserialize, Serialize};

use super::{ExportFormat, ExportSpec};
use crate::spec::{AdapterSpec, Quantization};

/// A program, and the answer to the question if it loads an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadsWith {
    /// The program's name.
    pub program: String,
    /// `true`: the program loads the export.
    pub loads: bool,
    /// The options that it needs, or the reason why it does not load the export.
    pub note: String,
}

/// Returns the smallest value that vLLM's `--max-lora-rank` accepts and that is at least `rank`.
///
/// Source: `max_lora_rank` of `LoRAConfig` in vLLM's `vllm/config/lora.py`.
#[must_use]
pub fn vllm_max_lora_rank(rank: u32) -> u32 {
    [8, 16, 32, 64, 128, 256].into_iter().find(|most| rank <= *most).unwrap_or(rank)
}

/// Returns the programs for an export of this adapter, which was trained over a base in this quantization.
#[must_use]
pub fn of(spec: ExportSpec, adapter: &AdapterSpec, quantization: Quantization) -> Vec<LoadsWith> {
    match spec.format {
        ExportFormat::Peft => peft(adapter, quantization),
        ExportFormat::Merged => vec![
            yes("PEFT", "as a base model, without an adapter"),
            yes("transformers", "AutoModelForCausalLM.from_pretrained"),
            yes("vLLM", "as a base model"),
            yes("LoRAX", "as a base model"),
            no("llama.cpp", "it reads GGUF; export the format gguf"),
            no("Ollama", "export the format gguf, which has a Modelfile"),
        ],
        ExportFormat::Gguf => vec![
            no("PEFT", "it reads safetensors; export the format peft"),
            yes("transformers", "with gguf_file; the weights are dequantized"),
            no("vLLM", "its support of GGUF is experimental; export the format merged"),
            no("LoRAX", "it reads safetensors; export the format merged"),
            yes("llama.cpp", "as a model, with -m"),
            yes("Ollama", "ollama create NAME -f Modelfile"),
        ],
        ExportFormat::GgufAdapter => vec![
            no("PEFT", "it reads safetensors; export the format peft"),
            no("transformers", "it reads safetensors; export the format peft"),
            no("vLLM", "it reads safetensors; export the format peft"),
            no("LoRAX", "it reads safetensors; export the format peft"),
            yes("llama.cpp", "with --lora, over the base model in GGUF"),
            yes("Ollama", "with ADAPTER in a Modelfile, over the base model in GGUF"),
        ],
    }
}

fn peft(adapter: &AdapterSpec, quantization: Quantization) -> Vec<LoadsWith> {
    let base = format!("over the base model in the quantization of the training: {}", quantization.in_words());
    let rank = vllm_max_lora_rank(adapter.rank);
    let servers = if adapter.use_dora {
        let why = "it runs no DoRA adapters; export the format merged";
        [no("vLLM", why), no("LoRAX", why)]
    } else {
        [yes("vLLM", format!("--enable-lora --max-lora-rank {rank}, {base}")), yes("LoRAX", base.clone())]
    };
    let mut all = vec![yes("PEFT", base.clone()), yes("transformers", format!("with PEFT installed, {base}"))];
    all.extend(servers);
    all.push(no("llama.cpp", "it reads GGUF; export the format gguf or gguf_adapter"));
    all.push(no("Ollama", "export the format gguf, which has a Modelfile"));
    all
}

fn yes(program: &str, note: impl Into<String>) -> LoadsWith {
    LoadsWith { program: program.into(), loads: true, note: note.into() }
}

fn no(program: &str, note: impl Into<String>) -> LoadsWith {
    LoadsWith { program: program.into(), loads: false, note: note.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        export::{BaseWeights, ExportDtype},
    };

    fn spec(format: ExportFormat) -> ExportSpec {
        let (dtype, base_weights) = (ExportDtype::F32, BaseWeights::Dequantized);
        ExportSpec { format, dtype, base_weights, shard_bytes: Bytes(1 << 30), imatrix: false }
    }

    #[test]
    fn a_peft_folder_loads_in_vllm_unless_it_is_a_dora() {
        let lora = AdapterSpec::lora(12, 24.0, &["q_proj"]);
        let find = |adapter: &AdapterSpec| {
            let all = of(spec(ExportFormat::Peft), adapter, Quantization::None);
            all.into_iter().find(|label| label.program == "vLLM").unwrap()
        };
        let loads = find(&lora);
        assert!(loads.loads && loads.note.contains("--max-lora-rank 16"), "{loads:?}");
        let refuses = find(&AdapterSpec { use_dora: true, ..lora });
        assert!(!refuses.loads && refuses.note.contains("DoRA"), "{refuses:?}");
    }

    #[test]
    fn every_format_names_every_program_once() {
        let lora = AdapterSpec::lora(8, 16.0, &["q_proj"]);
        let programs = ["LoRAX", "Ollama", "PEFT", "llama.cpp", "transformers", "vLLM"];
        for format in [ExportFormat::Peft, ExportFormat::Merged, ExportFormat::Gguf, ExportFormat::GgufAdapter] {
            let all = of(spec(format), &lora, Quantization::Int8);
            let mut named: Vec<&str> = all.iter().map(|label| label.program.as_str()).collect();
            named.sort_unstable();
            assert_eq!(named, programs, "{format:?}");
        }
    }
}
