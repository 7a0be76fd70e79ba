//! The module on burn's wgpu backend, against the dequantized weight in f64.

use burn::tensor::{Tensor, TensorData};
use burn_wgpu::{Wgpu, WgpuDevice};
use halfbyte_burn::Nf4Linear;
use halfbyte_quant::{QuantSpec, Quantized, Source, quantize};

/// Numbers that repeat nowhere soon.
fn numbers(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|i| ((i as f32 + seed) * 12.9898).sin() * 0.4).collect()
}

fn weight(out: usize, features: usize, double_quant: bool) -> Quantized {
    let spec = QuantSpec { double_quant, ..QuantSpec::default() };
    quantize(Source::F32(&numbers(out * features, 0.5)), spec).unwrap()
}

/// `‖found - wanted‖ / ‖wanted‖` of the module's output for `rows` rows.
fn error(out: usize, features: usize, rows: usize, double_quant: bool, bias: bool) -> f64 {
    let device = WgpuDevice::default();
    let weight = weight(out, features, double_quant);
    let bias = bias.then(|| numbers(out, 7.0));
    let layer = Nf4Linear::<Wgpu>::load(&weight, out, features, bias.as_deref(), &device).unwrap();
    let input = numbers(rows * features, 3.0);
    let x = Tensor::<Wgpu, 3>::from_data(TensorData::new(input.clone(), [1, rows, features]), &device);
    let y = layer.forward(x);
    assert_eq!(y.dims(), [1, rows, out]);
    let found = y.into_data().to_vec::<f32>().unwrap();

    let matrix = weight.dequantize();
    let (mut difference, mut size) = (0.0, 0.0);
    for row in 0..rows {
        for column in 0..out {
            let product =
                |i: usize| f64::from(matrix[column * features + i]) * f64::from(input[row * features + i]);
            let sum: f64 = (0..features).map(product).sum();
            let wanted = sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
            difference += (f64::from(found[row * out + column]) - wanted).powi(2);
            size += wanted.powi(2);
        }
    }
    (difference / size).sqrt()
}

#[test]
fn awkward_shapes() {
    for (out, features, rows, double_quant, bias) in [
        (96, 256, 1, true, false),
        (33, 100, 5, true, true),
        (70, 64, 40, false, true),
        (1, 33, 2, false, false),
    ] {
        let error = error(out, features, rows, double_quant, bias);
        println!("[{out}, {features}] for {rows}: {error:.1e}");
        assert!(error < 2e-6, "[{out}, {features}] for {rows}: {error:e}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = WgpuDevice::default();
    let weight = weight(8, 64, true);
    let refused = Nf4Linear::<Wgpu>::load(&weight, 9, 64, None, &device).unwrap_err().to_string();
    assert!(refused.contains("512 elements"), "{refused}");
    let refused = Nf4Linear::<Wgpu>::load(&weight, 8, 64, Some(&[0.0; 3]), &device).unwrap_err().to_string();
    assert!(refused.contains("a bias of 3 for 8"), "{refused}");
}
