//! The programs that generate the tokens of a replica.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

use super::kv_cache::KvCacheDtype;
use crate::{
    architecture::Architecture,
    spec::{AdapterSpec, Quantization},
};

/// The program that generates the tokens of a replica.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Engine {
    /// The engine of `attune-serving`.
    #[default]
    Attune,
    /// vLLM, behind a bridge.
    Vllm,
    /// LoRAX, behind a bridge.
    Lorax,
}

impl Engine {
    /// Returns the name, as in the API and in rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns the name for messages.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Attune => "Attune",
            Self::Vllm => "vLLM",
            Self::Lorax => "LoRAX",
        }
    }

    /// Returns the reason why the engine cannot serve a base in this quantization; `None`: it can. The weights of the
    /// other engines' own 4-bit and 8-bit formats are not those that adapters were trained over.
    #[must_use]
    pub fn quantization_refusal(self, quantization: Quantization) -> Option<String> {
        if self == Self::Attune || quantization == Quantization::None {
            return None;
        }
        let engine = self.in_words();
        Some(format!("{engine} serves bases without quantization, not in {quantization}. Use none, or engine attune"))
    }

    /// Returns the reason why the engine cannot keep keys and values in this type; `None`: it can.
    #[must_use]
    pub fn kv_cache_refusal(self, dtype: KvCacheDtype) -> Option<String> {
        if self == Self::Attune || dtype == KvCacheDtype::Auto {
            return None;
        }
        let (engine, dtype) = (self.in_words(), dtype.name());
        Some(format!("{engine} replicas have keys and values in auto, not in {dtype}. Use auto, or engine attune"))
    }

    /// Returns the reason why the engine cannot have a draft model; `None`: it can.
    #[must_use]
    pub fn draft_refusal(self) -> Option<String> {
        let engine = self.in_words();
        (self != Self::Attune).then(|| format!("{engine} replicas have no draft model. Use engine attune"))
    }

    /// Returns the reason why the engine cannot serve a base; `None`: it can.
    #[must_use]
    pub fn base_refusal(self, base: &Architecture) -> Option<String> {
        let engine = self.in_words();
        let is_refused = self != Self::Attune && base.gguf_blocks.is_some();
        is_refused.then(|| {
            format!(
                "its weights are the blocks of a GGUF file, which {engine} does not read. Import it with --dequantize, \
                 or use engine attune"
            )
        })
    }

    /// Returns the reason why the engine cannot serve an adapter; `None`: it can. `max_rank` is the limit that the
    /// engine was started with, if that is known.
    ///
    /// Sources: `PEFTHelper` in vLLM's `vllm/lora/peft_helper.py`, and `LoraConfig` in LoRAX's
    /// `server/lorax_server/adapters/lora.py`.
    #[must_use]
    pub fn adapter_refusal(self, adapter: &AdapterSpec, max_rank: Option<u32>) -> Option<String> {
        if self == Self::Attune {
            return None;
        }
        let (engine, rank) = (self.in_words(), adapter.rank);
        if adapter.use_dora {
            return Some(format!("{engine} does not support DoRA. Serve the adapter with engine attune"));
        }
        let most = max_rank.filter(|most| rank > *most)?;
        Some(format!("its rank, {rank}, is above max_lora_rank of the {engine} replicas, {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::gguf_blocks::KeptBlocks;

    #[test]
    fn every_engine_is_found_by_its_name() {
        for engine in Engine::VARIANTS {
            assert_eq!(engine.name().parse::<Engine>().unwrap(), *engine);
            assert_eq!(serde_json::to_value(engine).unwrap(), engine.name());
        }
    }

    #[test]
    fn another_engine_does_not_serve_the_blocks_of_a_gguf_file() {
        let plain = Architecture::from_config_json(include_bytes!("../../testdata/smollm2.json")).unwrap();
        let blocks = Architecture { gguf_blocks: Some(KeptBlocks::default()), ..plain.clone() };
        for engine in [Engine::Vllm, Engine::Lorax] {
            assert!(engine.base_refusal(&blocks).unwrap().contains("--dequantize"));
            assert_eq!(engine.base_refusal(&plain), None);
        }
        assert_eq!(Engine::Attune.base_refusal(&blocks), None);
    }

    #[test]
    fn what_another_engine_cannot_serve_is_refused_with_the_reason() {
        let lora = AdapterSpec::lora(64, 64.0, &["q_proj"]);
        let dora = AdapterSpec { use_dora: true, ..lora.clone() };
        for engine in [Engine::Vllm, Engine::Lorax] {
            assert_eq!(engine.adapter_refusal(&lora, Some(64)), None);
            assert_eq!(engine.adapter_refusal(&lora, None), None);
            assert!(engine.adapter_refusal(&lora, Some(32)).unwrap().contains("64, is above max_lora_rank"));
            assert!(engine.adapter_refusal(&dora, None).unwrap().contains("DoRA"));
            assert_eq!(engine.quantization_refusal(Quantization::None), None);
            assert!(engine.quantization_refusal(Quantization::Int8).unwrap().contains("not in int8"));
            assert_eq!(engine.kv_cache_refusal(KvCacheDtype::Auto), None);
            assert!(engine.kv_cache_refusal(KvCacheDtype::Int8).unwrap().contains("not in int8"));
            assert!(engine.draft_refusal().unwrap().contains("no draft model"));
        }
        assert_eq!((Engine::Attune.kv_cache_refusal(KvCacheDtype::Int8), Engine::Attune.draft_refusal()), (None, None));
        assert_eq!(Engine::Attune.adapter_refusal(&dora, Some(1)), None);
        assert_eq!(Engine::Attune.quantization_refusal(Quantization::Int8), None);
    }
}
