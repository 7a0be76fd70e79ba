//! The linear step on the wgpu runtime, software adapter included, against a reference in f64.

mod case;
mod reference;

use case::{Case, Residual, build, fp4, nf4, normal};
use halfbyte_backend::random::Stream;
use halfbyte_backend::{Act, Answer, Arrangement, Backend, Caps, DType, Format, Input, Output, Place, Rows};
use halfbyte_cuda::{CubeBackend, WgpuRuntime};
use reference::reference;

fn places(rows: usize) -> Vec<Place> {
    (0..rows).map(|row| Place { sequence: 0, position: row as u32, token_type: 0 }).collect()
}

/// Runs a case; the relative error of its output register. Panics with a fault's message.
fn run(backend: &CubeBackend<WgpuRuntime>, case: &Case) -> f64 {
    let built = build(case);
    let layout = backend.layout();
    let planned: u64 = built.stretch.wants.iter().map(|want| layout.want(&want.kind).unwrap()).sum();
    let caps = Caps { rows: case.batch, outputs: 1 };
    let before = backend.ledger().footprint();

    let slots = pollster::block_on(backend.reserve(&built.stretch.wants)).unwrap();
    assert_eq!(backend.ledger().footprint().total() - before.total(), planned);
    for (slot, want) in slots.iter().zip(&built.stretch.wants) {
        pollster::block_on(backend.upload(*slot, want, &built.weights)).unwrap();
    }
    let mut program = pollster::block_on(backend.compile(&built.stretch, &slots, caps)).unwrap();
    let planned_program = layout.program(&built.stretch, &caps).unwrap();
    assert_eq!(backend.ledger().footprint().total() - before.total(), planned + planned_program.total());

    let mut stream = Stream::new(case.seed + 1);
    let mut inputs = Vec::new();
    for &width in &built.stretch.widths {
        inputs.push((0..case.batch * width).map(|_| normal(&mut stream)).collect::<Vec<f32>>());
    }
    if case.outliers {
        // Whole features a thousand times larger, as in trained transformers.
        for feature in [0, case.cols / 2, case.cols - 1] {
            inputs[0].iter_mut().skip(feature).step_by(case.cols).for_each(|value| *value *= 1000.0);
        }
    }
    let hidden = inputs.concat();
    let rows = Rows { input: Input::Hidden(&hidden), places: &places(case.batch), output: Output::Hidden };
    let ticket = program.submit(&rows).unwrap();
    let Answer::Hidden(out) = pollster::block_on(ticket).unwrap() else { panic!("no hidden states") };
    // One launch for the step, one for each input register, and where there are many rows one for their norm.
    let apart = u64::from(case.batch > 8 && case.norm.is_some());
    assert_eq!(program.counts(), (4 + apart, 1));
    pollster::block_on(program.drain()).unwrap();
    drop(program);
    backend.release(&slots);
    assert_eq!(backend.ledger().footprint(), before);

    let expected = reference(case, &built, &inputs);
    assert_eq!(out.len(), expected.len());
    let difference: f64 = out.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (difference / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Opens the device and says which: these tests mean nothing where none is.
fn open() -> CubeBackend<WgpuRuntime> {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("these tests need a wgpu adapter; Mesa's lavapipe will do");
    println!("{:?}", backend.info());
    backend
}

fn check(cases: &[(&str, Case)]) {
    check_on(&open(), cases);
}

fn check_on(backend: &CubeBackend<WgpuRuntime>, cases: &[(&str, Case)]) {
    for (name, case) in cases {
        let error = run(backend, case);
        println!("{name}: {error:.2e}");
        assert!(error < 2e-6, "{name}: relative error {error:e}");
    }
}

#[test]
fn quantized_linears_of_awkward_shapes() {
    let with = |case: Case, format| Case { format, ..case };
    check(&[
        ("one row", Case::new(&[96], 256, 1)),
        ("seven rows, three segments", Case::new(&[33, 17, 17], 320, 7)),
        ("nine rows, columns of no group", Case::new(&[31], 100, 9)),
        ("blocks across rows", Case::new(&[50], 77, 3)),
        ("257 rows", Case::new(&[19], 96, 257)),
        ("more blocks than one nested block", Case::new(&[130, 70], 192, 2)),
        ("plain absmax", with(Case::new(&[40, 24], 128, 5), nf4(64, false))),
        ("blocks of 32 across rows", with(Case::new(&[40, 24], 75, 5), nf4(32, true))),
        ("blocks of 4096", with(Case::new(&[40], 200, 1), nf4(4096, true))),
        ("FP4", with(Case::new(&[64], 160, 4), fp4(64, true))),
        ("FP4, plain, odd", with(Case::new(&[21], 45, 1), fp4(128, false))),
        ("a single element", Case::new(&[1], 1, 1)),
    ]);
}

#[test]
fn norms_biases_residuals_and_activations() {
    let norm = |case: Case, offset| Case { norm: Some(offset), ..case };
    let mut cases = vec![
        ("norm", norm(Case::new(&[64, 32, 32], 256, 1), 0.0)),
        ("norm of Gemma, ragged", norm(Case::new(&[45], 72, 7), 1.0)),
        ("bias", Case { bias: true, ..Case::new(&[20, 12, 9], 96, 3) }),
        ("residual", Case { residual: Residual::Own, ..Case::new(&[47], 128, 1) }),
        ("accumulates", Case { residual: Residual::Out, ..Case::new(&[47], 128, 6) }),
        ("into columns of a wider register", Case { at: 5, bias: true, ..Case::new(&[30], 64, 2) }),
        (
            "all of it",
            Case {
                bias: true,
                residual: Residual::Out,
                act: Act::Silu,
                at: 3,
                ..norm(Case::new(&[37, 9], 99, 9), 0.5)
            },
        ),
    ];
    for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Tanh] {
        cases.push(("activation", Case { act, bias: true, ..Case::new(&[67], 96, 3) }));
    }
    check(&cases);
}

#[test]
fn gate_and_up() {
    let gated =
        |case: Case| Case { gated: true, act: Act::Silu, arrangement: Arrangement::Interleaved, ..case };
    check(&[
        ("two segments", Case { norm: Some(0.0), ..gated(Case::new(&[43, 43], 160, 1)) }),
        ("two segments, prompt", Case { norm: Some(0.0), ..gated(Case::new(&[43, 43], 160, 11)) }),
        ("one segment of two halves", Case { bias: true, ..gated(Case::new(&[38], 64, 5)) }),
        (
            "ragged columns",
            Case {
                act: Act::GeluTanh,
                bias: true,
                residual: Residual::Own,
                ..gated(Case::new(&[9, 9], 51, 9))
            },
        ),
    ]);
}

#[test]
fn dense_linears() {
    let dense = |dtype, case: Case| Case { format: Format::Dense(dtype), ..case };
    check(&[
        ("f32", dense(DType::F32, Case::new(&[23, 10], 64, 1))),
        ("f32, ragged", dense(DType::F32, Case { bias: true, ..Case::new(&[23], 37, 6) })),
        ("f16", dense(DType::F16, Case { norm: Some(0.0), ..Case::new(&[23, 10], 70, 5) })),
        ("bf16", dense(DType::Bf16, Case::new(&[23, 10], 96, 1))),
    ]);
}

#[test]
fn outliers_of_a_thousand() {
    let outliers = |case: Case| Case { outliers: true, ..case };
    check(&[
        ("one row", outliers(Case::new(&[96], 512, 1))),
        ("normed", outliers(Case { norm: Some(0.0), ..Case::new(&[96, 32], 512, 9) })),
        ("257 rows, ragged", outliers(Case::new(&[40], 203, 257))),
        (
            "gated",
            outliers(Case {
                gated: true,
                act: Act::Silu,
                arrangement: Arrangement::Interleaved,
                norm: Some(0.0),
                ..Case::new(&[40, 40], 256, 3)
            }),
        ),
    ]);
}

#[test]
fn a_layer_of_a_small_model() {
    check(&[
        ("decode", Case { norm: Some(0.0), ..Case::new(&[768, 256, 256], 768, 1) }),
        ("prompt", Case { norm: Some(0.0), ..Case::new(&[768, 256, 256], 768, 13) }),
    ]);
}

#[test]
fn sums_over_planes() {
    // CUDA's path. CubeCL does not use planes on software adapters by itself, but lavapipe has them.
    let backend = match open().with_planes(true) {
        Ok(backend) => backend,
        Err(fault) => {
            println!("only the other sums can run: {fault}");
            open().with_planes(false).expect("shared memory is always there")
        }
    };
    check_on(
        &backend,
        &[
            ("one row", Case { norm: Some(0.0), ..Case::new(&[70], 320, 1) }),
            ("nine rows", Case { norm: Some(0.0), bias: true, ..Case::new(&[37], 100, 9) }),
        ],
    );
}

#[test]
fn two_codes_at_a_time() {
    // What H100s and H200s may gain by: a table of 256 pairs, in copies.
    for copies in [1, 4] {
        check_on(
            &open().with_pairs(copies),
            &[
                ("one row", Case { norm: Some(0.0), ..Case::new(&[70], 320, 1) }),
                ("nine rows", Case::new(&[37], 100, 9)),
                ("FP4, plain, ragged", Case { format: fp4(64, false), ..Case::new(&[21], 45, 3) }),
            ],
        );
    }
}
