//! From how many tokens on layers stream, and where the room for it comes from.

mod synthetic;

use halfbyte_backend::{Footprint, Purpose};
use halfbyte_placement::streaming::{Crossing, Speeds, Unstreamed, unstreamed};
use halfbyte_placement::{
    Costs, Device, DeviceClass, HANDOVER_SECONDS, Plan, Policy, Request, Streaming, Wanted, plan,
};
use proptest::prelude::*;
use std::ops::Range;
use synthetic::{GIB, MIB, Model, device, within};

fn crossing() -> impl Strategy<Value = Crossing> {
    (1e3..1e11, 0.1..100.0, 0.0..1e6, 1.0..100.0).prop_map(
        |(bytes, products, row_bytes, handovers): (f64, f64, f64, f64)| Crossing {
            bytes,
            products: bytes * products,
            row_bytes,
            handovers: handovers.floor(),
        },
    )
}

fn speeds() -> impl Strategy<Value = Speeds> {
    (1e8..1e12, 1e8..1e13, 1e8..1e12, 1e8..1e15).prop_map(
        |(host_bytes, host_products, upload_bytes, gpu_products)| Speeds {
            host_bytes,
            host_products,
            upload_bytes,
            gpu_products,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The threshold divides the rows: below it, with one exception, the host is no slower; above it never faster.
    #[test]
    fn above_the_threshold_streaming_is_faster(crossing in crossing(), speeds in speeds(), more in 0_usize..100_000) {
        let faster = |rows: usize| crossing.through(&speeds, rows as f64) < crossing.on_host(&speeds, rows as f64);
        match crossing.from_rows(&speeds) {
            Some(rows) => {
                prop_assert!(rows >= 2);
                // More tokens never turn it off again, but for rounding where both are all but equal.
                let (through, host) =
                    (crossing.through(&speeds, (rows + more) as f64), crossing.on_host(&speeds, (rows + more) as f64));
                prop_assert!(through <= host * (1.0 + 1e-9), "{rows} + {more}: {through} {host}");
                // One fewer does not do.
                prop_assert!(rows == 2 || !faster(rows - 1) || nearly(&crossing, &speeds, rows - 1));
            }
            // However long a prompt, nothing is gained.
            None => prop_assert!(!faster(1 << 32), "{:?}", crossing.from_rows(&speeds)),
        }
    }

    #[test]
    fn a_faster_link_and_gpu_lower_it_and_a_faster_cpu_raises_it(
        crossing in crossing(), speeds in speeds(), factor in 1.0..100.0,
    ) {
        let at = |speeds: Speeds| crossing.from_rows(&speeds).unwrap_or(usize::MAX);
        let now = at(speeds);
        let link = at(Speeds { upload_bytes: speeds.upload_bytes * factor, ..speeds });
        let gpu = at(Speeds { gpu_products: speeds.gpu_products * factor, ..speeds });
        let cpu = at(Speeds { host_products: speeds.host_products * factor, ..speeds });
        let memory = at(Speeds { host_bytes: speeds.host_bytes * factor, ..speeds });
        prop_assert!(link <= now && gpu <= now, "{} {} {}", link, gpu, now);
        prop_assert!(cpu >= now && memory >= now, "{} {} {}", cpu, memory, now);
    }
}

fn nearly(crossing: &Crossing, speeds: &Speeds, rows: usize) -> bool {
    let (through, host) = (crossing.through(speeds, rows as f64), crossing.on_host(speeds, rows as f64));
    (through - host).abs() < 1e-9 * host
}

/// A layer of 8B in 4 bits on PCIe 4, a CPU of 500 GFLOPS and a GPU of 50 TFLOPS: about five tokens, as
/// arithmetic by hand has it.
#[test]
fn a_known_machine() {
    let crossing = Crossing { bytes: 112e6, products: 218e6, row_bytes: 20e3, handovers: 0.0 };
    let speeds = Speeds { host_bytes: 60e9, host_products: 250e9, upload_bytes: 25e9, gpu_products: 25e12 };
    assert_eq!(crossing.from_rows(&speeds), Some(6));
    let slow = Speeds { upload_bytes: 3e9, ..speeds };
    assert_eq!(crossing.from_rows(&slow), Some(44));
    // A GPU that is no faster than the CPU.
    assert_eq!(crossing.from_rows(&Speeds { gpu_products: 200e9, ..speeds }), None);
}

/// A synthetic model whose layers stream through `lane` bytes.
struct Streams {
    model: Model,
    lane: u64,
}

impl Costs for Streams {
    fn blocks(&self) -> usize {
        self.model.blocks()
    }

    fn name(&self, block: usize) -> String {
        self.model.name(block)
    }

    fn stretch(&self, device: usize, blocks: Range<usize>, context: usize) -> Result<Footprint, String> {
        self.model.stretch(device, blocks, context)
    }

    fn products(&self, block: usize) -> u64 {
        if block == 0 { 0 } else { self.model.weights[block] * 2 }
    }

    fn row_bytes(&self, _block: usize) -> u64 {
        20_000
    }

    fn streaming(
        &self,
        _first: (usize, Range<usize>),
        blocks: Range<usize>,
        _to: usize,
        context: usize,
    ) -> Result<(Footprint, Footprint), String> {
        let lanes = blocks.len().min(2) as u64 * self.lane + self.model.kv * context as u64;
        Ok((Footprint::of(Purpose::Activations, MIB), Footprint::of(Purpose::Weights, lanes)))
    }
}

fn llama(lane: u64) -> Streams {
    Streams { model: Model::llama_2_7b(16 << 10), lane }
}

fn measured(gpu: u64) -> Vec<Device> {
    let cpu = Device { products: Some(250e9), ..device("cpu", DeviceClass::Cpu, 16 * GIB, Some(50e9)) };
    let gpu = Device {
        upload: Some(20e9),
        products: Some(10e12),
        ..device("wgpu:0", DeviceClass::Gpu, gpu, Some(400e9))
    };
    vec![cpu, gpu]
}

fn request(streaming: Streaming) -> Request {
    Request { context: Wanted::Exactly(2048), min_context: 256, policy: Policy::Auto, streaming }
}

/// What a plan holds on each device is within every budget.
fn check(devices: &[Device], costs: &dyn Costs, plan: &Plan) {
    let stages: Vec<_> = plan.stages.iter().map(|stage| (stage.device, stage.blocks.clone())).collect();
    assert!(within(devices, &stages, costs, plan.context));
    for (index, device) in devices.iter().enumerate() {
        assert!(plan.footprint(index).total() <= device.budget, "{}", device.name);
    }
    if let Some(streamed) = &plan.streamed {
        let gpu = plan.stages.iter().find(|stage| stage.device == streamed.device).unwrap();
        assert_eq!(streamed.blocks, 1..gpu.blocks.start);
    }
}

#[test]
fn auto_makes_room_where_that_pays_and_only_there() {
    let costs = llama(100 * MIB);
    let layers = |plan: &Plan| {
        plan.stages.iter().find(|stage| stage.device == 1).map_or(0, |stage| stage.blocks.len())
    };
    for gpu in [1, 2, 3] {
        let devices = measured(gpu * GIB);
        let never = plan(&devices, &costs, &request(Streaming::Never)).unwrap();
        let auto = plan(&devices, &costs, &request(Streaming::Auto)).unwrap();
        let always = plan(&devices, &costs, &request(Streaming::Always)).unwrap();
        assert_eq!(never.streamed, None);
        for found in [&never, &auto, &always] {
            check(&devices, &costs, found);
            assert_eq!(found.context, 2048);
        }
        let streamed = auto.streamed.clone().expect("a slow CPU and a fast link");
        assert!((2..100).contains(&streamed.from_rows), "{streamed:?}");
        assert_eq!(always.streamed.as_ref().map(|streamed| streamed.from_rows), Some(2));
        assert!(layers(&auto) < layers(&never) && layers(&auto) + 6 > layers(&never), "{gpu} GiB");
    }
    // A slow link: not worth it. Rates that nobody knows: neither.
    let mut devices = measured(2 * GIB);
    devices[1].upload = Some(1e8);
    assert_eq!(plan(&devices, &costs, &request(Streaming::Auto)).unwrap().streamed, None);
    devices[1].upload = None;
    assert_eq!(plan(&devices, &costs, &request(Streaming::Auto)).unwrap().streamed, None);
    assert!(plan(&devices, &costs, &request(Streaming::Always)).unwrap().streamed.is_some());
    // All on the GPU: nothing streams and no room is kept.
    let whole = plan(&measured(8 * GIB), &costs, &request(Streaming::Always)).unwrap();
    assert_eq!((whole.streamed, whole.stages.len()), (None, 1));
}

#[test]
fn what_has_no_room_does_not_stream_and_still_fits() {
    // Lanes larger than the GPU.
    let costs = llama(4 * GIB);
    let devices = measured(2 * GIB);
    for streaming in [Streaming::Auto, Streaming::Always] {
        let found = plan(&devices, &costs, &request(streaming)).unwrap();
        check(&devices, &costs, &found);
        assert_eq!(found.streamed, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// On any machine: within every budget, and never a refusal where there was a plan.
    #[test]
    fn room_is_never_taken_from_what_has_to_fit(
        cpu in 0..8 * GIB, gpu in 0..5 * GIB, lane in 0..GIB, upload in 1e8..1e11, gpu_products in 1e10..1e14,
        shared in any::<bool>(), context in 1_usize..4096, always in any::<bool>(),
    ) {
        let costs = llama(lane);
        let mut devices = measured(gpu);
        devices[0].budget = cpu;
        (devices[1].upload, devices[1].products) = (Some(upload), Some(gpu_products));
        if shared {
            devices[1].pool = devices[0].pool.clone();
        }
        let streaming = if always { Streaming::Always } else { Streaming::Auto };
        let request = |streaming| Request { context: Wanted::Exactly(context), ..request(streaming) };
        let never = plan(&devices, &costs, &request(Streaming::Never));
        let found = plan(&devices, &costs, &request(streaming));
        prop_assert_eq!(never.is_ok(), found.is_ok());
        if let Ok(found) = found {
            check(&devices, &costs, &found);
            prop_assert_eq!(found.context, context);
            let held = [0, 1].map(|device| found.footprint(device).total());
            if shared && held[0] > 0 && held[1] > 0 {
                prop_assert!(held[0] + held[1] <= cpu.min(gpu));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The threshold of a plan is where the two ways cost the same by the devices' rates, worked out here once more; where
    /// nothing streams, the plan says why.
    #[test]
    fn a_plan_streams_from_where_the_costs_cross(
        read in 1e10..1e11, products in 1e10..1e13, upload in 1e8..1e11, gpu_products in 1e10..1e14, gpu in 1..4_u64,
    ) {
        let costs = llama(100 * MIB);
        let mut devices = measured(gpu * GIB);
        (devices[0].rate, devices[0].products) = (Some(read), Some(products));
        (devices[1].upload, devices[1].products) = (Some(upload), Some(gpu_products));
        let found = plan(&devices, &costs, &request(Streaming::Auto)).unwrap();
        let gpu = found.stages.iter().find(|stage| stage.device == 1).unwrap();
        let layers = (gpu.blocks.start - 1) as f64;
        let bytes = layers * 100.0 * MIB as f64;
        let host = |rows: usize| (bytes / read).max(rows as f64 * 2.0 * bytes / products);
        let through = |rows: usize| {
            let row = 2.0 * bytes / gpu_products + layers * 20_000.0 / upload;
            bytes / upload + layers * HANDOVER_SECONDS + rows as f64 * row
        };
        let why = unstreamed(&devices, &costs, &found);
        match (&found.streamed, why) {
            (Some(streamed), None) => {
                let rows = streamed.from_rows;
                prop_assert!(through(rows) <= host(rows) * (1.0 + 1e-9), "{}", rows);
                prop_assert!(through(2048) <= host(2048) * (1.0 + 1e-9));
                let fewer = rows - 1;
                prop_assert!(rows == 2 || through(fewer) >= host(fewer) * (1.0 - 1e-9), "{}", rows);
            }
            (None, Some(Unstreamed::Never(speeds))) => {
                prop_assert!(through(1 << 30) >= host(1 << 30) * (1.0 - 1e-9));
                prop_assert_eq!((speeds.host_products, speeds.upload_bytes), (products, upload));
            }
            (None, Some(Unstreamed::Beyond(rows))) => {
                prop_assert!(rows > 2048 && through(2048) >= host(2048) * (1.0 - 1e-9), "{}", rows);
            }
            // It would, but for what it takes from the tokens of an answer.
            (None, Some(Unstreamed::NoRoom(rows))) => prop_assert!((2..=2048).contains(&rows)),
            (streamed, why) => prop_assert!(false, "{:?}, {:?}", streamed, why),
        }
    }
}

#[test]
fn an_emulated_gpu_is_left_alone_and_what_is_not_known_is_named() {
    let costs = llama(100 * MIB);
    let mut devices = measured(2 * GIB);
    for device in &mut devices {
        (device.rate, device.upload, device.products) = (None, None, None);
    }
    let unknown = plan(&devices, &costs, &request(Streaming::Auto)).unwrap();
    assert_eq!(unstreamed(&devices, &costs, &unknown), Some(Unstreamed::Unknown(0)));
    devices[0].products = Some(1e11);
    devices[0].rate = Some(5e10);
    assert_eq!(unstreamed(&devices, &costs, &unknown), Some(Unstreamed::Unknown(1)));
    devices[1].emulated = true;
    let whole = plan(&devices, &costs, &request(Streaming::Auto)).unwrap();
    assert_eq!((whole.stages.len(), whole.stages[0].device), (1, 0));
    assert_eq!(unstreamed(&devices, &costs, &whole), None);
    // A disk is not.
    devices[0].budget = GIB;
    devices.push(device("disk", DeviceClass::Disk, 16 * GIB, None));
    let spread =
        plan(&devices, &costs, &Request { policy: Policy::Sequential, ..request(Streaming::Auto) }).unwrap();
    assert!(spread.stages.iter().any(|stage| stage.device == 1), "{spread:?}");
}
