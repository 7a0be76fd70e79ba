//! bitsandbytes' 4-bit linear layers for [burn](https://burn.dev).
//!
//! [`Nf4Linear`] is a burn module whose weight stays in 4 bits on the device: the product reads the codes and decodes
//! them in registers, in one launch. It runs on every backend of burn's that is CubeCL's (wgpu, CUDA, ROCm): on those
//! for which [`FourBit`] is implemented. The weight has no gradient; for inference, or under adapters of your own.
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_wgpu::{Wgpu, WgpuDevice};
//! use halfbyte_burn::Nf4Linear;
//! use halfbyte_quant::{QuantSpec, Source, quantize};
//!
//! // A weight [out, in] = [48, 64], as a checkpoint has it; `quantize` does what bitsandbytes does.
//! let weight: Vec<f32> = (0..48 * 64).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
//! let tensor = quantize(Source::F32(&weight), QuantSpec::default())?;
//!
//! let device = WgpuDevice::default();
//! let layer = Nf4Linear::<Wgpu>::load(&tensor, 48, 64, None, &device)?;
//! let x = Tensor::<Wgpu, 2>::ones([3, 64], &device);
//! assert_eq!(layer.forward(x).dims(), [3, 48]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use halfbyte_cuda::{CubeLinear, PackedLinear};
use halfbyte_quant::Quantized;
use std::fmt;

/// Why a layer could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError(String);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

/// Backends that have the kernels.
pub trait FourBit: Backend {
    /// `x W^T + b` for `x` `[rows, linear.padded_features()]` in f32; `[rows, linear.out_features()]`.
    fn four_bit_linear(
        linear: &CubeLinear,
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        state: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl<R, I, BT> FourBit for CubeBackend<R, f32, I, BT>
where
    R: CubeRuntime,
    I: IntElement,
    BT: BoolElement,
    f32: FloatElement,
{
    fn four_bit_linear(
        linear: &CubeLinear,
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        state: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let rows = x.meta.shape()[0];
        let bytes = rows * linear.out_features() * 4;
        let out = x.client.empty(bytes);
        let weight = [codes.handle, scales.handle, state.handle];
        let launched = linear.launch(&x.client, weight, x.handle, out.clone(), rows);
        // The module made all of these itself: as with burn's own operations, what fails now is the device.
        if let Err(fault) = launched {
            panic!("{fault}");
        }
        let shape = [rows, linear.out_features()].into();
        CubeTensor::new_contiguous(x.client, x.device, shape, out, x.dtype)
    }
}

/// `y = x W^T + b` with `W` in 4 bits (NF4 or FP4, absmax plain or double-quantized).
#[derive(Module, Debug)]
pub struct Nf4Linear<B: Backend> {
    /// Eight codes a word.
    codes: Param<Tensor<B, 1, Int>>,
    /// Row starts and absmax, as bits.
    scales: Param<Tensor<B, 1, Int>>,
    /// Codebook, nested scales and bias.
    state: Param<Tensor<B, 1>>,
    #[module(skip)]
    linear: CubeLinear,
}

impl<B: FourBit> Nf4Linear<B> {
    /// Loads a quantized weight `[out_features, in_features]` (of a bitsandbytes checkpoint, or fresh from
    /// [`halfbyte_quant::quantize`]) and its bias `[out_features]` to `device`.
    ///
    /// # Errors
    /// [`LoadError`] if weight and bias are not of this shape.
    pub fn load(
        weight: &Quantized,
        out_features: usize,
        in_features: usize,
        bias: Option<&[f32]>,
        device: &B::Device,
    ) -> Result<Self, LoadError> {
        let packed = PackedLinear::new(weight, out_features, in_features, bias);
        let packed = packed.map_err(|fault| LoadError(fault.to_string()))?;
        let ints = |words: &[u32]| {
            let signed: Vec<i32> = words.iter().map(|word| word.cast_signed()).collect();
            let len = signed.len();
            Tensor::<B, 1, Int>::from_data(TensorData::new(signed, [len]), device)
        };
        let len = packed.state.len();
        let state = Tensor::<B, 1>::from_data(TensorData::new(packed.state, [len]), device);
        Ok(Self {
            codes: Param::initialized(ParamId::new(), ints(&packed.codes)),
            scales: Param::initialized(ParamId::new(), ints(&packed.scales)),
            state: Param::from_tensor(state).set_require_grad(false),
            linear: packed.linear,
        })
    }

    /// `[.., in_features]` to `[.., out_features]`, for any number of leading dimensions.
    ///
    /// # Panics
    /// If the last dimension is not `in_features`, or the device is gone, as burn's own layers do.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let mut dims = x.dims();
        let (features, padded) = (self.linear.in_features(), self.linear.padded_features());
        assert_eq!(dims[D - 1], features, "the layer takes {features} features");
        let rows = dims[..D - 1].iter().product::<usize>();
        let mut x = x.reshape([rows, features]);
        if padded > features {
            let zeros = Tensor::zeros([rows, padded - features], &x.device());
            x = Tensor::cat(vec![x, zeros], 1);
        }
        let out = B::four_bit_linear(
            &self.linear,
            x.into_primitive().tensor(),
            self.codes.val().into_primitive(),
            self.scales.val().into_primitive(),
            self.state.val().into_primitive().tensor(),
        );
        dims[D - 1] = self.linear.out_features();
        Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(out)).reshape(dims)
    }
}
