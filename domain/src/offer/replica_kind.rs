//! The kind of a replica: the program that generates its tokens, the devices that it may use, and how it decodes.

use strum::{EnumString, IntoStaticStr, VariantArray};

use super::kind::OfferDevice;
use crate::{
    id::BaseModelId,
    serve::{Engine, KvCacheDtype},
};

/// The devices that a replica may be placed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ReplicaDevice {
    /// Any device that the engine can use.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// Any NVIDIA GPU.
    Cuda,
}

impl ReplicaDevice {
    /// Returns the name, as in the API and in rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns whether the device of an offer may be used.
    #[must_use]
    pub const fn allows(self, device: &OfferDevice) -> bool {
        matches!(
            (self, device),
            (Self::Auto, _) | (Self::Cpu, OfferDevice::Cpu) | (Self::Cuda, OfferDevice::Cuda { .. })
        )
    }
}

/// The kind of a replica. The default is that of the replicas that all projects share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaKind {
    /// The program that generates its tokens.
    pub engine: Engine,
    /// The devices that it may use.
    pub device: ReplicaDevice,
    /// The number type of keys and values.
    pub kv_cache_dtype: KvCacheDtype,
    /// The smaller base that drafts tokens.
    pub draft: Option<BaseModelId>,
}

impl ReplicaKind {
    /// Returns the reason why no device that the kind allows is one of its engine's; `None`: some may be.
    #[must_use]
    pub fn refusal(self) -> Option<String> {
        let needs_gpu = self.engine != Engine::Attune && self.device == ReplicaDevice::Cpu;
        needs_gpu.then(|| format!("{} requires a GPU. Use cuda or auto, or engine attune", self.engine.in_words()))
    }

    /// Returns the end of the fingerprint of answers, such as `_kv-int8_draft-0123456789ab`: what changes their logits,
    /// or the tokens that a seed samples. Empty with the defaults.
    #[must_use]
    pub fn fingerprint(self) -> String {
        let kv = match self.kv_cache_dtype {
            KvCacheDtype::Auto => String::new(),
            dtype @ KvCacheDtype::Int8 => format!("_kv-{}", dtype.name()),
        };
        // The last digits of an ID are random.
        let digits = self.draft.map(|id| id.uuid().as_u128() % (1 << 48));
        let draft = digits.map(|digits| format!("_draft-{digits:012x}")).unwrap_or_default();
        kv + &draft
    }

    /// Returns the parameter of decoding that the engine does not have, and the reason; `None`: it has all.
    #[must_use]
    pub fn decoding_refusal(self) -> Option<(&'static str, String)> {
        let draft = self.draft.and_then(|_| self.engine.draft_refusal()).map(|reason| ("draft_model", reason));
        draft.or_else(|| Some(("kv_cache_dtype", self.engine.kv_cache_refusal(self.kv_cache_dtype)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;

    #[test]
    fn a_device_allows_the_offers_that_have_it() {
        let cuda = OfferDevice::Cuda { product: "NVIDIA-L4".into(), count: 1, memory: Bytes::mib(22_000) };
        for (device, name, allowed) in [
            (ReplicaDevice::Auto, "auto", [true, true]),
            (ReplicaDevice::Cpu, "cpu", [true, false]),
            (ReplicaDevice::Cuda, "cuda", [false, true]),
        ] {
            assert_eq!([device.allows(&OfferDevice::Cpu), device.allows(&cuda)], allowed, "{name}");
            assert_eq!((device.name(), name.parse::<ReplicaDevice>().unwrap()), (name, device));
        }
    }

    #[test]
    fn another_engine_has_no_use_for_a_processor() {
        for engine in [Engine::Vllm, Engine::Lorax] {
            let kind = ReplicaKind { engine, ..ReplicaKind::default() };
            let on_cpu = ReplicaKind { device: ReplicaDevice::Cpu, ..kind };
            assert!(on_cpu.refusal().unwrap().contains("requires a GPU"));
            assert_eq!(kind.refusal(), None);
        }
        assert_eq!(ReplicaKind { device: ReplicaDevice::Cpu, ..ReplicaKind::default() }.refusal(), None);
    }

    #[test]
    fn a_fingerprint_has_what_differs_from_the_defaults() {
        let draft = Some(BaseModelId::new(uuid::Uuid::from_u128(0xaaaa_0000_0000_0000_0000_0123_4567_89ab)));
        let kind = ReplicaKind { kv_cache_dtype: KvCacheDtype::Int8, draft, ..ReplicaKind::default() };
        assert_eq!(kind.fingerprint(), "_kv-int8_draft-0123456789ab");
        assert_eq!(ReplicaKind { kv_cache_dtype: KvCacheDtype::Auto, ..kind }.fingerprint(), "_draft-0123456789ab");
        assert_eq!(ReplicaKind::default().fingerprint(), "");
    }

    #[test]
    fn another_engine_has_neither_drafts_nor_keys_and_values_in_8_bits() {
        let draft = Some(BaseModelId::new(uuid::Uuid::from_u128(1)));
        let plain = ReplicaKind { engine: Engine::Vllm, ..ReplicaKind::default() };
        assert_eq!(plain.decoding_refusal(), None);
        let (drafts, small) =
            (ReplicaKind { draft, ..plain }, ReplicaKind { kv_cache_dtype: KvCacheDtype::Int8, ..plain });
        assert_eq!(drafts.decoding_refusal().unwrap().0, "draft_model");
        assert_eq!(small.decoding_refusal().unwrap().0, "kv_cache_dtype");
        let ours = ReplicaKind { draft, kv_cache_dtype: KvCacheDtype::Int8, ..ReplicaKind::default() };
        assert_eq!(ours.decoding_refusal(), None);
    }
}
