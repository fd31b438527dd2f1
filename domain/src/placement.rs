//! The placement of a computation: the device that holds its tensors, and the number type that it computes in.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

/// The kind of device that holds the tensors of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The processor and its memory.
    #[default]
    Cpu,
}

/// The number type of activations, gradients and unpacked weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeKind {
    /// IEEE 754 single precision.
    #[default]
    F32,
}

impl ComputeKind {
    /// Returns the bytes of one number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
        }
    }
}

/// The device and the number type of a computation. The default is that of runs from before plans stored one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// The number type.
    pub compute: ComputeKind,
}

/// The way in which a replica computes with the weights of a quantized base. A base that is not quantized is computed
/// in `f32`. The default is that of replicas from before specs had it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ServedCompute {
    /// In `f32`, with the weights unpacked: the trainer's numbers, in as much memory as a base that is not quantized.
    #[default]
    F32,
    /// From the codes of the weights, with activations as integers.
    Packed,
}

impl ServedCompute {
    /// Returns the name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_computing_have_the_same_name_everywhere() {
        for (compute, name) in [(ServedCompute::F32, "f32"), (ServedCompute::Packed, "packed")] {
            assert_eq!((compute.name(), serde_json::to_value(compute).unwrap()), (name, name.into()));
        }
        assert_eq!(ServedCompute::default(), ServedCompute::F32);
    }

    #[test]
    fn the_default_is_f32_on_the_cpu_and_keeps_its_names() {
        let placement = Placement::default();
        assert_eq!(placement, Placement { device: Device::Cpu, compute: ComputeKind::F32 });
        let json = serde_json::json!({ "device": "cpu", "compute": "f32" });
        assert_eq!(serde_json::to_value(placement).unwrap(), json);
        assert_eq!(serde_json::from_value::<Placement>(json).unwrap(), placement);
    }
}
