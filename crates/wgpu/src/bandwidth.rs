//! How fast the device reads its memory: the limit of decoding.

use crate::gpu::{BufferPlan, Gpu};
use crate::pipeline::{Counts, Extent, Launch};
use crate::wait::Signal;
use halfbyte_backend::{DeviceKind, Fault, Purpose};
use halfbyte_shaders::{Flags, Kernel, Variant};
use web_time::Instant;

/// The best of this many submissions: what the memory can do, not what others left of it.
const SUBMISSIONS: usize = 5;
const THREADS: u32 = 256;

/// Bytes a second. Reads one buffer of up to 1 GiB many times in each submission, so that what a
/// submission costs by itself is a small part; a software adapter gets 64 MiB and two times.
pub(crate) async fn read(gpu: &Gpu, max_binding: u64) -> Result<f64, Fault> {
    gpu.check()?;
    let software = gpu.info.kind == DeviceKind::Software;
    let (wanted, passes) = if software { (64 << 20, 2) } else { (1 << 30, 32) };
    let bytes = max_binding.min(wanted).min(u64::from(u32::MAX)) / 4096 * 4096;
    let groups = if software { 16 } else { 4096 };
    let buffer = |name: &str, bytes| BufferPlan {
        name: name.to_owned(),
        purpose: Purpose::Scratch,
        bytes,
        usage: wgpu::BufferUsages::STORAGE,
    };
    let plans = [
        buffer("the buffer that measures bandwidth", bytes),
        buffer("its sums", u64::from(groups * THREADS) * 4),
    ];
    let made = gpu.allocator().allocate(&plans).await?;
    let mut launch = Launch {
        variant: Variant { kernel: Kernel::ReadBandwidth, flags: Flags::default() },
        constants: vec![
            ("THREADS", f64::from(THREADS)),
            ("QUADS", (bytes / 16) as f64),
            ("GROUPS_X", f64::from(groups)),
        ],
        bindings: Vec::new(),
        grid: [Extent::Fixed(groups), Extent::Fixed(1), Extent::Fixed(1)],
    };
    launch.read(1, &made[0].buffer);
    launch.write(2, &made[1].buffer);
    let (dispatches, counts) = (gpu.prepare(&[launch])?, Counts::default());
    let mut prepared = dispatches.of(&counts);
    let (dispatch, [x, y, z]) =
        prepared.next().ok_or_else(|| Fault::Internal("a launch without a dispatch".into()))?;

    let mut best = f64::INFINITY;
    for _ in 0..=SUBMISSIONS {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bindings, &[]);
            for _ in 0..passes {
                pass.dispatch_workgroups(x, y, z);
            }
        }
        let done = Signal::default();
        let start = Instant::now();
        gpu.queue.submit([encoder.finish()]);
        let signal = done.clone();
        gpu.queue.on_submitted_work_done(move || signal.set(Ok(())));
        done.wait(gpu).await.map_err(|reason| Fault::Lost { device: gpu.info.name.clone(), reason })?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    gpu.check()?;
    Ok((bytes * passes) as f64 / best)
}
