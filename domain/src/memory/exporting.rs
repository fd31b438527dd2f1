//! The memory of an export: the merge holds a few tensors, and the comparison with the served adapter holds a whole
//! model, first the served one and then the exported one. An importance matrix is computed before the merge, from the
//! served one.

use crate::{
    architecture::Architecture,
    export::{ExportFormat, ExportSpec, IMATRIX_CHUNK_TOKENS},
    memory::{
        estimate::MemoryEstimate,
        replica::{PROCESS, workspace_floats},
        sizes::{base, embeddings, per_token},
    },
    placement::Placement,
    spec::Quantization,
};

/// The number of copies of the largest tensor that the merge holds: the base's weight, the merged one, and its bytes.
const TENSOR_COPIES: u64 = 4;

/// The number of tokens that both models are compared on, rounded up.
const COMPARED_TOKENS: u64 = 256;

/// Estimates the peak of an export of an adapter over a base in this quantization.
#[must_use]
pub fn exporting(model: &Architecture, quantization: Quantization, spec: ExportSpec) -> MemoryEstimate {
    let number = Placement::default().compute.bytes();
    let mut terms = vec![("process", PROCESS)];
    if matches!(spec.format, ExportFormat::Merged | ExportFormat::Gguf) {
        let widest = model.hidden_size.saturating_mul(model.vocab_size.max(model.intermediate_size));
        let of = |count, floats| per_token(count, floats, number);
        terms.extend([
            ("base", base(model, Quantization::None, number)),
            ("embeddings", embeddings(model, number)),
            ("workspace", of(COMPARED_TOKENS, workspace_floats(model))),
            ("logits", of(4 * COMPARED_TOKENS, model.vocab_size)),
            ("merge", of(TENSOR_COPIES, widest)),
        ]);
        if spec.imatrix {
            // The forward of a chunk keeps what a backward would read; the inputs of one layer are recomputed from it.
            terms.push(("importance matrix", of(2 * IMATRIX_CHUNK_TOKENS, workspace_floats(model))));
        }
        if quantization != Quantization::None {
            terms.push(("quantized weights", base(model, quantization, number)));
        }
    }
    MemoryEstimate::of(&terms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        export::{BaseWeights, ExportDtype},
    };

    #[test]
    fn an_adapter_alone_needs_no_base_and_a_merged_model_needs_one() {
        let config = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
            "max_position_embeddings": 8192, "tie_word_embeddings": true}"#;
        let model = Architecture::from_config_json(config.as_bytes()).unwrap();
        let spec = |format| {
            let (dtype, base_weights) = (ExportDtype::F32, BaseWeights::Dequantized);
            ExportSpec { format, dtype, base_weights, shard_bytes: Bytes(1 << 30), imatrix: false }
        };
        let need = |format| exporting(&model, Quantization::Int8, spec(format)).peak;
        assert_eq!(need(ExportFormat::Peft), PROCESS);
        let merged = need(ExportFormat::Merged);
        assert!(merged > PROCESS + Bytes(134_515_008 * 4) && merged < Bytes::mib(2500), "{merged}");
        assert_eq!(need(ExportFormat::Gguf), merged);
        let weighted = ExportSpec { dtype: ExportDtype::Q4KMedium, imatrix: true, ..spec(ExportFormat::Gguf) };
        let more = exporting(&model, Quantization::Int8, weighted).peak;
        assert!(more > merged && more < merged + Bytes::mib(128), "{more} and {merged}");
    }
}
