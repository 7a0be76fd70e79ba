//! Pipelines made on all cores at once: a driver takes milliseconds to seconds for each.

/// A pipeline to be made.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) label: String,
    pub(crate) layout: &'a wgpu::PipelineLayout,
    pub(crate) module: &'a wgpu::ShaderModule,
    pub(crate) constants: &'a [(&'static str, f64)],
    pub(crate) cache: Option<&'a wgpu::PipelineCache>,
}

impl Job<'_> {
    fn make(&self, device: &wgpu::Device) -> wgpu::ComputePipeline {
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&self.label),
            layout: Some(self.layout),
            module: self.module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: self.constants,
                // Every kernel writes what it reads.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache,
        })
    }
}

/// The pipelines of `jobs`, in their order.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn make_all(device: &wgpu::Device, jobs: &[Job<'_>]) -> Vec<wgpu::ComputePipeline> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        while let Some((index, job)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?)))
        {
            made.push((index, job.make(device)));
        }
        made
    };
    let helpers =
        std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len()).saturating_sub(1);
    let mut made = std::thread::scope(|scope| {
        let spawn =
            |_| std::thread::Builder::new().name("halfbyte-compile".into()).spawn_scoped(scope, work).ok();
        // A thread that cannot be had leaves its work to the others.
        let helpers: Vec<_> = (0..helpers).filter_map(spawn).collect();
        let mut made = work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => made.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        made
    });
    made.sort_unstable_by_key(|&(index, _)| index);
    made.into_iter().map(|(_, pipeline)| pipeline).collect()
}

/// The pipelines of `jobs`, in their order. The browser compiles in threads of its own.
#[cfg(target_family = "wasm")]
pub(crate) fn make_all(device: &wgpu::Device, jobs: &[Job<'_>]) -> Vec<wgpu::ComputePipeline> {
    jobs.iter().map(|job| job.make(device)).collect()
}
