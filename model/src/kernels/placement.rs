//! libtorch's kinds and devices for a placement, and those of tensors that a program reads.

use attune_domain::placement::{ComputeKind, Device, Placement};
use tch::Kind;

/// The kind and the device of tensors that are read from files: they are moved to a placement afterwards.
pub(crate) const HOST: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

/// Returns the kind and the device of a placement's tensors.
pub(crate) const fn options(placement: Placement) -> (Kind, tch::Device) {
    let kind = match placement.compute {
        ComputeKind::F32 => Kind::Float,
    };
    let device = match placement.device {
        Device::Cpu => tch::Device::Cpu,
    };
    (kind, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_takes_as_many_bytes_in_libtorch_as_in_an_estimate() {
        let placement = Placement::default();
        let (kind, device) = options(placement);
        assert_eq!(kind.elt_size_in_bytes() as u64, placement.compute.bytes());
        assert_eq!((kind, device), HOST);
    }
}
