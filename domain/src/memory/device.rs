//! The devices that an estimate can be for, and the sizes that differ between them.

use crate::{
    bytes::Bytes,
    memory::{estimate::Terms, sizes::F32},
    placement::ComputeKind,
    spec::Quantization,
};

/// The memory of libtorch, its thread pools and the program itself, with the pages of the libraries that a run touches.
/// Fitted on the llama and mistral jobs of `make memory-report`, as the other fitted constants.
pub(crate) const PROCESS: Bytes = Bytes::mib(145);

/// The device memory of a CUDA context with the kernels that a run loads. The caching allocator does not count it.
///
/// Source: unslothai/unsloth-zoo#1053, 426 MiB for an empty context of PyTorch 2.10 with CUDA 13.0, and
/// pytorch/pytorch#109888, about 400 MB. The rest is assumed, for the kernels that are loaded on first use.
const CONTEXT: Bytes = Bytes::mib(512);

/// The workspace of cuBLAS and cuBLASLt.
///
/// Source: PyTorch's `aten/src/ATen/cuda/CublasHandlePool.cpp`, 32 MiB on Hopper and less on older devices, as the
/// reference of `cublasSetWorkspace` recommends.
const CUBLAS: Bytes = Bytes::mib(32);

/// The bytes of a number in bf16.
const BF16: u64 = 2;

/// The rows of a matrix product's right-hand side that the CPU's loops copy at once, in the order that they read them.
const PACKED_ROWS: u64 = 512;

/// The device that an estimate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// The processor, which computes in this number type.
    Cpu(ComputeKind),
    /// A CUDA device, which computes in bf16.
    Cuda,
}

impl Device {
    /// Returns the bytes of an activation, and of a weight that is not quantized.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Cpu(kind) => kind.bytes(),
            Self::Cuda => BF16,
        }
    }

    /// Returns the bytes of a logit in training. On CUDA it is in `f32` for the loss, and its gradient is in bf16 for
    /// the product with the head; on the CPU the gradient replaces it.
    pub(crate) const fn logit_bytes(self) -> u64 {
        match self {
            Self::Cpu(kind) => kind.bytes(),
            Self::Cuda => F32 + BF16,
        }
    }

    /// Returns the number of activations that take as much memory as `count` values in `f32`.
    pub(crate) const fn singles(self, count: u64) -> u64 {
        count * F32 / self.bytes()
    }

    /// Returns the maximum number of rows of a weight that a matrix product copies. cuBLAS copies none.
    pub(crate) const fn packed_rows(self) -> u64 {
        match self {
            Self::Cpu(_) => PACKED_ROWS,
            Self::Cuda => 0,
        }
    }

    /// Returns the terms of the libraries.
    pub(crate) fn floor(self) -> Terms {
        match self {
            Self::Cpu(_) => vec![("process", PROCESS)],
            Self::Cuda => vec![("CUDA context", CONTEXT), ("cuBLAS workspace", CUBLAS)],
        }
    }

    /// Returns the name of the base's term. On CUDA it names the quantization, because advice on GPUs quotes it.
    pub(crate) const fn base_name(self, quantization: Quantization) -> &'static str {
        match (self, quantization) {
            (Self::Cpu(_), _) => "base",
            (Self::Cuda, Quantization::Nf4 { .. }) => "NF4 base",
            (Self::Cuda, Quantization::Int8) => "int8 base",
            (Self::Cuda, Quantization::None) => "bf16 base",
        }
    }
}
