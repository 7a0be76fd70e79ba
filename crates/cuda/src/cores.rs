//! Whether products on tensor cores are right here: one of them beside the same in 64 bits on the host, once.

use crate::guard::{caught, fault};
use crate::hardware::{Hardware, offered_cores};
use crate::kernels::linear_cores::Cores;
use crate::linear::PackedLinear;
use crate::staging::persistent;
use cubecl::prelude::*;
use halfbyte_backend::Fault;
use halfbyte_backend::random::Stream;
use halfbyte_quant::{QuantSpec, Source, quantize};

/// `‖found - right‖ / ‖right‖` at most: the conformance table's.
pub(crate) const TOLERANCE: f64 = halfbyte_backend::conformance::TOLERANCE;

/// The relative error of a product of many rows as `hardware` has it: a matrix and rows of `x` that fill no tile, in
/// NF4 with double quantization.
///
/// # Errors
/// [`Fault::Lost`] if the kernel does not run.
pub(crate) fn error<R: Runtime>(client: &ComputeClient<R>, hardware: &Hardware) -> Result<f64, Fault> {
    const ROWS: usize = 203;
    const COLS: usize = 416;
    const BATCH: usize = 75;
    let device = &hardware.device;
    let mut stream = Stream::new(97);
    let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| stream.uniform() - 0.5).collect() };
    let tensor = quantize(Source::F32(&numbers(ROWS * COLS)), QuantSpec::default())
        .map_err(|error| Fault::Internal(format!("{device}: {error}")))?;
    let weights = tensor.dequantize();
    // From very small to very large: both ends of what a half can be.
    let mut x = numbers(BATCH * COLS);
    for (row, values) in x.chunks_mut(COLS).enumerate() {
        values.iter_mut().for_each(|value| *value *= 10f32.powi(row as i32 % 10 - 4));
    }
    let packed = PackedLinear::new(&tensor, ROWS, COLS, None)?;

    let upload = |bytes: &[u8]| persistent(device, client, || client.create_from_slice(bytes));
    let weight = [
        upload(bytemuck::cast_slice(&packed.codes))?,
        upload(bytemuck::cast_slice(&packed.scales))?,
        upload(bytemuck::cast_slice(&packed.state))?,
    ];
    let input = upload(bytemuck::cast_slice(&x))?;
    let out = upload(&vec![0xFF; BATCH * ROWS * 4])?;
    packed.linear.launch_on(hardware, client, weight, input, out.clone(), BATCH)?;
    let read = caught(device, || client.read_async(vec![out]))?;
    let read = cubecl::future::block_on(read).map_err(|error| fault(device, "a product", &error))?;
    let bytes = read.first().map(|bytes| &bytes[..]).unwrap_or_default();
    let found: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect();

    // Row by row: the largest rows are not to hide the others.
    let mut worst = 0.0f64;
    for (x, found) in x.chunks(COLS).zip(found.chunks(ROWS)) {
        let (mut off, mut size) = (0.0, 0.0);
        for (weights, &found) in weights.chunks(COLS).zip(found) {
            let right: f64 = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            off += (f64::from(found) - right).powi(2);
            size += right * right;
        }
        // NaN is the worst of all.
        let error = (off / size).sqrt();
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    Ok(if found.len() == BATCH * ROWS { worst } else { f64::INFINITY })
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::kernels::linear_cores::Cores;
    use crate::{CubeBackend, WgpuRuntime};

    #[test]
    #[ignore = "the software adapter compiles its kernels for 20 s: see CONTRIBUTING"]
    fn two_halves_are_as_good_as_32_bits_and_one_is_not() {
        let backend = CubeBackend::<WgpuRuntime>::open().unwrap();
        let error = |cores: Option<Cores>| {
            let mut hardware = Hardware::of("cube:0", backend.client);
            hardware.cores = cores;
            super::error(backend.client, &hardware).unwrap()
        };
        let (tiled, two) = (error(None), error(Some(Cores::PLAIN)));
        let turned = error(Some(Cores { fragments: [2, 1], planes: [1, 2], ..Cores::PLAIN }));
        let one = error(Some(Cores { split: false, ..Cores::PLAIN }));
        println!("32 bits {tiled:.1e}, two halves {two:.1e} and {turned:.1e}, one half {one:.1e}");
        assert!(tiled < TOLERANCE && two < TOLERANCE && turned < TOLERANCE, "{tiled:e}, {two:e}, {turned:e}");
        // The check can fail.
        assert!((1e-4..1e-1).contains(&one), "{one:e}");
    }
}

/// How products use tensor cores, if the device has any and they give what the host gives.
pub(crate) fn trusted<R: Runtime>(client: &ComputeClient<R>, hardware: &Hardware) -> Option<Cores> {
    let wanted = std::env::var("HALFBYTE_CUDA_CORES").ok();
    let cores = offered_cores(client, wanted.as_deref())?;
    let tried = Hardware { cores: Some(cores), ..hardware.clone() };
    // One half a number was asked for by who knows what it costs.
    let most = if cores.split { TOLERANCE } else { 1e-2 };
    let device = &hardware.device;
    match error(client, &tried) {
        Ok(error) if error <= most => Some(cores),
        Ok(error) => {
            tracing::warn!(
                "{device}: a product on tensor cores is off by {error:.1e}: they are not used; please report this"
            );
            None
        }
        Err(fault) => {
            tracing::warn!(
                "{fault}: tensor cores are not used (their kernels need mma.h and crt/mma.h of CUDA's toolkit)"
            );
            None
        }
    }
}
