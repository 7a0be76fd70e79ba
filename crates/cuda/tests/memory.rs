//! The ledger beside CubeCL's own account. One test, since a process has one CubeCL server for a device.

use halfbyte_backend::conformance::SeededWeights;
use halfbyte_backend::{
    Backend, Caps, Fault, Format, Kind, LinearShape, LinearStep, Pre, Purpose, QuantFormat, Reg, Segment,
    Step, Stretch, Want, WantId,
};
use halfbyte_cuda::{CubeBackend, WgpuRuntime};
use halfbyte_quant::QuantSpec;

fn want(rows: usize, cols: usize) -> Want {
    let segment = Segment {
        tensor: format!("{rows}x{cols}"),
        rows,
        cols,
        format: Format::Quant(QuantFormat::from(QuantSpec::default())),
        bias: None,
        transposed: false,
    };
    let kind = Kind::Linear(LinearShape::single(segment));
    Want { name: format!("{rows}x{cols}"), purpose: Purpose::Weights, kind }
}

#[test]
fn the_ledger_is_what_the_allocator_says() {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    let held = || backend.ledger().footprint().total() - backend.layout().resident().total();
    let (in_use, reserved) = backend.witnessed().unwrap();
    assert_eq!(held(), 0);

    let wants = [want(1000, 1024), want(513, 1024), want(77, 100)];
    let slots = pollster::block_on(backend.reserve(&wants)).unwrap();
    let planned: u64 = wants.iter().map(|want| backend.layout().want(&want.kind).unwrap()).sum();
    assert_eq!(held(), planned);
    let (now_in_use, now_reserved) = backend.witnessed().unwrap();
    assert_eq!(now_in_use - in_use, planned);
    assert_eq!(now_reserved - reserved, planned);

    let source = SeededWeights::new(7);
    for (slot, want) in slots.iter().zip(&wants) {
        pollster::block_on(backend.upload(*slot, want, &source)).unwrap();
    }
    let staging = backend.witnessed().unwrap().1 - now_reserved;
    assert!(staging > 0 && staging <= backend.layout().resident().total(), "{staging} bytes stage");

    let step = LinearStep {
        input: Reg(0),
        pre: Pre::default(),
        weight: WantId(0),
        act: halfbyte_backend::Act::Identity,
        gated: false,
        residual: None,
        out: Reg(1),
        at: 0,
    };
    let stretch = Stretch {
        wants: wants.to_vec(),
        steps: vec![Step::Linear(step)],
        widths: vec![1024, 1024],
        inputs: vec![Reg(0)],
        outputs: vec![Reg(1)],
    };
    let caps = Caps { rows: 64, outputs: 1 };
    let program = pollster::block_on(backend.compile(&stretch, &slots, caps)).unwrap();
    let registers = backend.layout().program(&stretch, &caps).unwrap().total();
    assert_eq!(held(), planned + registers);
    assert_eq!(backend.witnessed().unwrap().0 - in_use, planned + registers);

    // Beyond one buffer: refused as a value, all or nothing, and the device goes on.
    let too_much = [want(64, 64), want(1 << 16, 1 << 13)];
    let fault = pollster::block_on(backend.reserve(&too_much)).unwrap_err();
    assert!(matches!(fault, Fault::Unsupported { .. } | Fault::OutOfMemory { .. }), "{fault}");
    assert_eq!(held(), planned + registers);

    drop(program);
    backend.release(&slots);
    assert_eq!(held(), 0);
    let (in_use_after, reserved_after) = backend.witnessed().unwrap();
    assert_eq!(in_use_after, in_use);
    assert!(reserved_after <= reserved, "{reserved_after} bytes are still taken, {reserved} were at first");
}
