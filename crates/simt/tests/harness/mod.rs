//! One shader on one device of the interpreter.

#![allow(dead_code, reason = "each test uses a part of it")]

use halfbyte_simt::{Adapter, Finding, Settings};
use std::sync::{Arc, Mutex};
use wgpu::BufferUsages;

/// What a run gave.
pub struct Run {
    /// The buffers afterwards, in words.
    pub buffers: Vec<Vec<u32>>,
    pub findings: Vec<Finding>,
    /// Errors that no scope took.
    pub errors: Vec<String>,
}

impl Run {
    pub fn floats(&self, buffer: usize) -> Vec<f32> {
        self.buffers[buffer].iter().map(|&word| f32::from_bits(word)).collect()
    }

    /// The only finding.
    pub fn only(&self) -> &Finding {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        assert_eq!(self.findings.len(), 1, "{:#?}", self.findings);
        &self.findings[0]
    }

    /// The buffers of a run without findings and errors.
    pub fn clean(self) -> Vec<Vec<u32>> {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        assert!(self.findings.is_empty(), "{:#?}", self.findings);
        self.buffers
    }
}

/// Subgroups of `size`.
pub fn subgroups(size: u32) -> Settings {
    Settings { subgroup: Some((size, size)), ..Settings::default() }
}

/// Runs `wgsl`'s entry point `main` on buffers at the bindings 0 and up of group 0.
pub fn run(wgsl: &str, buffers: &[Vec<u32>], grid: [u32; 3]) -> Run {
    run_on(Settings::default(), wgsl, &[], buffers, grid)
}

/// The same with settings and constants.
pub fn run_on(
    settings: Settings,
    wgsl: &str,
    constants: &[(&str, f64)],
    buffers: &[Vec<u32>],
    grid: [u32; 3],
) -> Run {
    let adapter = Adapter::new(settings);
    let gpu = adapter.wgpu();
    let request = wgpu::DeviceDescriptor {
        required_features: gpu.features(),
        required_limits: gpu.limits(),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(gpu.request_device(&request)).unwrap();
    let errors = Arc::new(Mutex::new(Vec::new()));
    let heard = errors.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        heard.lock().unwrap().push(error.to_string());
    }));
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("test"),
        source: wgpu::ShaderSource::Wgsl(wgsl.into()),
    });
    // What the text binds, used or not.
    let entries: Vec<_> = (0..buffers.len() as u32)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: wgsl.contains(&format!("@binding({binding}) var<storage, read> ")),
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
    let layout = device.create_bind_group_layout(&layout);
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("test"),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants,
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    let bytes = |words: &Vec<u32>| words.len() as u64 * 4;
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let make = |size, usage| {
        let label = Some("a buffer");
        device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
    };
    let bound: Vec<_> = buffers.iter().map(|words| make(bytes(words), usage)).collect();
    for (buffer, words) in bound.iter().zip(buffers) {
        queue.write_buffer(buffer, 0, bytemuck::cast_slice(words));
    }
    let entries: Vec<_> = (0u32..)
        .zip(&bound)
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let group = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
    let group = device.create_bind_group(&group);
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        let [x, y, z] = grid;
        pass.dispatch_workgroups(x, y, z);
    }
    let answers: Vec<_> = buffers
        .iter()
        .map(|words| make(bytes(words), BufferUsages::MAP_READ | BufferUsages::COPY_DST))
        .collect();
    for (from, to) in bound.iter().zip(&answers) {
        encoder.copy_buffer_to_buffer(from, 0, to, 0, None);
    }
    queue.submit([encoder.finish()]);
    let mut found = Vec::new();
    for answer in &answers {
        answer.slice(..).map_async(wgpu::MapMode::Read, |result| result.unwrap());
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        found.push(bytemuck::pod_collect_to_vec(&answer.slice(..).get_mapped_range()));
    }
    let errors = errors.lock().unwrap().clone();
    Run { buffers: found, findings: adapter.findings(), errors }
}
