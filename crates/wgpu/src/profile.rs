//! One submission with the device's clock read around every dispatch.
//!
//! Each dispatch gets a compute pass of its own, since every adapter with timestamps can take them where
//! passes begin and end. That costs time between dispatches, which is in no class.

use crate::gpu::{BufferPlan, Gpu};
use crate::pipeline::Dispatch;
use crate::wait::{Signal, lost};
use halfbyte_backend::{Fault, Purpose, StepCost};

/// Timestamps of one query set, which WebGPU allows 4096 of.
const QUERIES: usize = 4096;

/// Runs the dispatches and adds up their times by class, in the order in which classes first come. Nothing
/// if the adapter has no timestamps.
pub(crate) async fn run(
    gpu: &Gpu,
    dispatches: &[(&Dispatch, [u32; 3])],
    position: u64,
) -> Result<Vec<StepCost>, Fault> {
    if dispatches.is_empty() || !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        return Ok(Vec::new());
    }
    let bytes = (dispatches.len() * 16) as u64;
    let buffer =
        |name: &str, usage| BufferPlan { name: name.into(), purpose: Purpose::Staging, bytes, usage };
    let plans = [
        buffer("timestamps", wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
        buffer("timestamps on the host", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
    ];
    let made = gpu.allocator().allocate(&plans).await?;
    let (resolved, read) = (&made[0].buffer, &made[1].buffer);

    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for (part, dispatches) in dispatches.chunks(QUERIES / 2).enumerate() {
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2 * dispatches.len() as u32,
        });
        for (index, &(dispatch, grid)) in dispatches.iter().enumerate() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * index as u32),
                    end_of_pass_write_index: Some(2 * index as u32 + 1),
                }),
            });
            dispatch.encode(&mut pass, grid);
        }
        let at = (part * QUERIES * 8) as u64;
        encoder.resolve_query_set(&queries, 0..2 * dispatches.len() as u32, resolved, at);
    }
    encoder.copy_buffer_to_buffer(resolved, 0, read, 0, bytes);
    gpu.queue.submit([encoder.finish()]);
    let signal = Signal::default();
    signal.map(read, wgpu::MapMode::Read);
    signal.wait(gpu).await.map_err(|reason| lost(&gpu.info.name, reason))?;
    gpu.check()?;

    let ticks: Vec<u64> = {
        let mapped = read.slice(..).get_mapped_range();
        mapped.chunks_exact(8).map(|tick| u64::from_le_bytes(std::array::from_fn(|i| tick[i]))).collect()
    };
    read.unmap();
    let second = f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
    let mut costs: Vec<StepCost> = Vec::new();
    for (&(dispatch, _), ticks) in dispatches.iter().zip(ticks.chunks_exact(2)) {
        let class = dispatch.class.name;
        let known = costs.iter().position(|cost| cost.class == class).unwrap_or_else(|| {
            costs.push(StepCost { class: class.into(), dispatches: 0, seconds: 0.0, bytes: 0 });
            costs.len() - 1
        });
        let cost = &mut costs[known];
        cost.dispatches += 1;
        cost.seconds += ticks[1].saturating_sub(ticks[0]) as f64 * second;
        cost.bytes += dispatch.class.bytes(position);
    }
    Ok(costs)
}
