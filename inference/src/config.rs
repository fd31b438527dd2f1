//! The configuration of inference, which the API and the scheduler share.

use attune_domain::{placement::ServedCompute, serve::DEFAULT_DISK_CACHE, spec::Quantization};
use serde::{Deserialize, Deserializer};

/// The time that a request waits for a replica to become available, and the settings of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serving {
    /// The time that a request waits for a replica to become available, in seconds.
    pub wait_seconds: u64,
    /// The quantization in which a base model without an adapter is served: `none`, `int8`, `nf4` or `nf4-double`. An
    /// adapter is always served over the quantization that it was trained over.
    #[serde(deserialize_with = "quantization")]
    pub base_quantization: Quantization,
    /// The way in which replicas compute with the weights of a quantized base: `packed` or `f32`.
    pub compute: ServedCompute,
    /// `true`: replicas draft tokens of answers from earlier text, and verify several in one pass.
    pub speculation: bool,
    /// The maximum size of all adapters in a node's disk cache, in bytes, in addition to those in use.
    pub disk_cache_bytes: u64,
}

/// Parses a quantization's name.
///
/// # Errors
/// There is no quantization of this name.
pub fn quantization<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quantization, D::Error> {
    let name = String::deserialize(deserializer)?;
    Quantization::from_name(&name).ok_or_else(|| {
        let allowed = Quantization::ALL.map(Quantization::name).join(", ");
        serde::de::Error::custom(format!("base_quantization: '{name}' is not one of {allowed}"))
    })
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            wait_seconds: 180,
            base_quantization: Quantization::None,
            compute: ServedCompute::Packed,
            speculation: true,
            disk_cache_bytes: DEFAULT_DISK_CACHE.0,
        }
    }
}

/// The section `[prices]`: the prices that users are charged; 0 by default. The price of a machine's hour is that of
/// its offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// The price of trained tokens: tokens with a loss, counted in each step that trains on them.
    pub usd_per_million_trained_tokens: f64,
    /// The price of prompt tokens.
    pub usd_per_million_input_tokens: f64,
    /// The price of completion tokens.
    pub usd_per_million_output_tokens: f64,
}

impl Prices {
    /// Returns the price of a million trained tokens, in millionths of a dollar.
    #[must_use]
    pub fn micro_usd_per_million_trained_tokens(&self) -> i64 {
        (self.usd_per_million_trained_tokens * 1e6).round() as i64
    }

    /// Checks that every price is a number from 0 to 1,000,000,000.
    ///
    /// # Errors
    /// The first price that is not.
    pub fn check(&self) -> Result<(), String> {
        let Self { usd_per_million_trained_tokens, usd_per_million_input_tokens, usd_per_million_output_tokens } =
            *self;
        for price in [usd_per_million_trained_tokens, usd_per_million_input_tokens, usd_per_million_output_tokens] {
            if !(0.0..=1e9).contains(&price) {
                return Err(format!("prices: {price} is not from 0 to 1000000000"));
            }
        }
        Ok(())
    }
}
