//! The number type of the keys and values of a replica's requests.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

use crate::{architecture::Architecture, bytes::Bytes};

/// The number type of keys and values in memory. The names are those of vLLM's `kv_cache_dtype`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum KvCacheDtype {
    /// That of the computation, `f32`.
    #[default]
    Auto,
    /// Codes of 8 bits, with a scale in `f32` for each token and head.
    Int8,
}

impl KvCacheDtype {
    /// Returns the name, as in the API and in rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns the bytes of one token's keys and values over all blocks.
    #[must_use]
    pub fn bytes_per_token(self, model: &Architecture) -> Bytes {
        let plain = model.kv_bytes_per_token();
        match self {
            Self::Auto => plain,
            Self::Int8 => {
                let scales = 2 * model.num_hidden_layers * model.num_key_value_heads;
                Bytes(plain.0 / 4 + 4 * scales)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = include_str!("../../testdata/smollm2.json");

    #[test]
    fn every_type_is_found_by_its_name() {
        for dtype in KvCacheDtype::VARIANTS {
            assert_eq!(dtype.name().parse::<KvCacheDtype>().unwrap(), *dtype);
            assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
        }
        assert_eq!(KvCacheDtype::default().name(), "auto");
    }

    #[test]
    fn a_token_in_8_bits_takes_a_code_per_number_and_a_scale_per_head() {
        let model = Architecture::from_config_json(SMOLLM2.as_bytes()).unwrap();
        // 30 blocks, 3 key heads of 64 numbers, keys and values.
        assert_eq!(KvCacheDtype::Auto.bytes_per_token(&model), Bytes(2 * 30 * 3 * 64 * 4));
        assert_eq!(KvCacheDtype::Int8.bytes_per_token(&model), Bytes(2 * 30 * 3 * (64 + 4)));
    }
}
