//! WebGPU's own rules: limits, usages, alignments, scopes.

use halfbyte_simt::{Adapter, Settings};
use std::sync::{Arc, Mutex};
use wgpu::{BufferUsages, ErrorFilter};

struct Opened {
    device: wgpu::Device,
    queue: wgpu::Queue,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Opened {
    fn new(settings: Settings) -> Self {
        let gpu = Adapter::new(settings).wgpu();
        let request = wgpu::DeviceDescriptor {
            required_limits: gpu.limits(),
            required_features: gpu.features(),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(gpu.request_device(&request)).unwrap();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let heard = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            heard.lock().unwrap().push(error.to_string());
        }));
        Self { device, queue, errors }
    }

    fn buffer(&self, size: u64, usage: BufferUsages) -> wgpu::Buffer {
        let label = Some("of the test");
        self.device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
    }

    /// What was said since the last call, which must be one thing with `wanted` in it.
    fn said(&self, wanted: &str) {
        let said = std::mem::take(&mut *self.errors.lock().unwrap());
        assert!(said.len() == 1 && said[0].contains(wanted), "{wanted}: {said:?}");
    }

    fn silent(&self) {
        let said = self.errors.lock().unwrap();
        assert!(said.is_empty(), "{said:?}");
    }
}

const TEXT: &str = "
    override SIZE: u32 = 1u;
    @group(0) @binding(0) var<storage, read> source: array<u32>;
    @group(0) @binding(1) var<storage, read_write> out: array<u32>;
    @compute @workgroup_size(SIZE)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) { out[id.x] = source[id.x]; }
";

fn pipeline(opened: &Opened, constants: &[(&str, f64)]) -> wgpu::ComputePipeline {
    let module = opened.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(TEXT.into()),
    });
    opened.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions {
            constants,
            zero_initialize_workgroup_memory: true,
        },
        cache: None,
    })
}

fn bind(
    opened: &Opened,
    pipeline: &wgpu::ComputePipeline,
    parts: [(&wgpu::Buffer, u64, Option<u64>); 2],
) -> wgpu::BindGroup {
    let entry = |(binding, (buffer, offset, size)): (u32, (_, _, Option<u64>))| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: size.and_then(std::num::NonZeroU64::new),
        }),
    };
    let entries: Vec<_> = (0..).zip(parts).map(entry).collect();
    opened.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}

fn dispatch(opened: &Opened, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup, count: u32) {
    let mut encoder = opened.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(count, 1, 1);
    }
    opened.queue.submit([encoder.finish()]);
}

#[test]
fn memory_runs_out_inside_a_scope_and_comes_back() {
    let opened = Opened::new(Settings { memory: 1 << 20, ..Settings::default() });
    let half = opened.buffer(1 << 19, BufferUsages::STORAGE);
    let memory = opened.device.push_error_scope(ErrorFilter::OutOfMemory);
    let validity = opened.device.push_error_scope(ErrorFilter::Validation);
    let refused = opened.buffer(1 << 20, BufferUsages::STORAGE);
    let (validity, memory) = (validity.pop(), memory.pop());
    assert!(pollster::block_on(validity).is_none());
    assert!(matches!(pollster::block_on(memory), Some(wgpu::Error::OutOfMemory { .. })));
    drop((half, refused));
    opened.buffer(1 << 20, BufferUsages::STORAGE);
    opened.silent();
    let scope = opened.device.push_error_scope(ErrorFilter::Validation);
    opened.buffer(u64::MAX / 8, BufferUsages::STORAGE);
    let error = pollster::block_on(scope.pop()).unwrap();
    assert!(error.to_string().contains("max_buffer_size"), "{error}");
}

#[test]
fn limits_and_features_that_are_not_offered_are_refused() {
    let gpu = Adapter::new(Settings { subgroup: None, ..Settings::default() }).wgpu();
    let request = wgpu::DeviceDescriptor {
        required_features: wgpu::Features::SUBGROUP,
        ..wgpu::DeviceDescriptor::default()
    };
    assert!(pollster::block_on(gpu.request_device(&request)).is_err());
    let offered = wgpu::Limits::default();
    let limits = wgpu::Limits { max_buffer_size: offered.max_buffer_size + 4, ..offered };
    let request = wgpu::DeviceDescriptor { required_limits: limits, ..wgpu::DeviceDescriptor::default() };
    let (device, _queue) = pollster::block_on(gpu.request_device(&request)).unwrap();
    let errors = Arc::new(Mutex::new(Vec::new()));
    let heard = errors.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| heard.lock().unwrap().push(error)));
    assert!(errors.lock().unwrap()[0].to_string().contains("max_buffer_size"));
}

#[test]
fn bindings_are_checked() {
    let opened = Opened::new(Settings::default());
    let pipeline = pipeline(&opened, &[]);
    let storage = |size| opened.buffer(size, BufferUsages::STORAGE | BufferUsages::COPY_DST);
    let (source, out) = (storage(1024), storage(1024));
    bind(&opened, &pipeline, [(&source, 256, Some(256)), (&out, 0, None)]);
    opened.silent();
    bind(&opened, &pipeline, [(&source, 128, None), (&out, 0, None)]);
    opened.said("not aligned to 256");
    bind(&opened, &pipeline, [(&source, 768, Some(260)), (&out, 0, None)]);
    opened.said("260 bytes at 768 of 1024");
    bind(&opened, &pipeline, [(&source, 0, None), (&out, 0, Some(6))]);
    opened.said("not aligned to 4");
    let other = opened.buffer(64, BufferUsages::COPY_DST);
    bind(&opened, &pipeline, [(&other, 0, None), (&out, 0, None)]);
    opened.said("not BufferUsages(STORAGE)");
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 512, ..wgpu::Limits::default() };
    let small = Opened::new(Settings { limits, ..Settings::default() });
    let buffer = small.buffer(1024, BufferUsages::STORAGE);
    let other = small.buffer(16, BufferUsages::STORAGE);
    bind(&small, &self::pipeline(&small, &[]), [(&buffer, 0, None), (&other, 0, None)]);
    small.said("exceed the largest binding, 512");
}

#[test]
fn a_buffer_is_read_or_written_in_one_dispatch() {
    let opened = Opened::new(Settings::default());
    let pipeline = pipeline(&opened, &[]);
    let buffer = opened.buffer(1024, BufferUsages::STORAGE);
    let group = bind(&opened, &pipeline, [(&buffer, 0, Some(256)), (&buffer, 256, Some(256))]);
    opened.silent();
    dispatch(&opened, &pipeline, &group, 1);
    opened.said("bound at 0 and 1");
}

#[test]
fn dispatches_keep_to_the_grid_and_the_workgroup() {
    let opened = Opened::new(Settings::default());
    let working = pipeline(&opened, &[("SIZE", 256.0)]);
    let buffer = |usage| opened.buffer(1024, BufferUsages::STORAGE | usage);
    let (source, out) = (buffer(BufferUsages::COPY_DST), buffer(BufferUsages::COPY_SRC));
    let group = bind(&opened, &working, [(&source, 0, None), (&out, 0, None)]);
    dispatch(&opened, &working, &group, 1);
    opened.silent();
    dispatch(&opened, &working, &group, 65_536);
    let said = std::mem::take(&mut *opened.errors.lock().unwrap());
    assert!(said[0].contains("65536 x 1 x 1") && said.len() == 2, "{said:?}");
    pipeline(&opened, &[("SIZE", 512.0)]);
    opened.said("exceed the limits");
    pipeline(&opened, &[("NO_SUCH", 1.0)]);
    opened.said("NO_SUCH");
}

#[test]
fn mapped_buffers_are_the_hosts() {
    let opened = Opened::new(Settings::default());
    let from = opened.buffer(16, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC);
    let to = opened.buffer(16, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    let copy = || {
        let mut encoder = opened.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, 16);
        opened.queue.submit([encoder.finish()]);
    };
    let mapped = Arc::new(Mutex::new(false));
    let heard = mapped.clone();
    from.slice(..).map_async(wgpu::MapMode::Write, move |result| {
        result.unwrap();
        *heard.lock().unwrap() = true;
    });
    assert!(!*mapped.lock().unwrap(), "nothing is mapped before the device is polled");
    copy();
    opened.said("is mapped");
    opened.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    assert!(*mapped.lock().unwrap());
    from.slice(4..12).get_mapped_range_mut().copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    from.unmap();
    copy();
    to.slice(..).map_async(wgpu::MapMode::Read, |result| result.unwrap());
    opened.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    assert_eq!(to.slice(..).get_mapped_range()[..], [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]);
    opened.buffer(16, BufferUsages::MAP_READ | BufferUsages::STORAGE);
    opened.said("goes with");
    from.slice(..).map_async(wgpu::MapMode::Read, |result| assert!(result.is_err()));
    opened.said("not BufferUsages(MAP_READ)");
}
