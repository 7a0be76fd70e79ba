//! The read bandwidth of a device, measured.

use crate::backend::CubeBackend;
use crate::guard::{caught, fault};
use crate::kernels::read_bandwidth::{UNITS, read_bandwidth};
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{Backend, DeviceKind, Fault, Purpose};
use std::time::Instant;

/// What no cache of a GPU holds; an H200's second level is 50 MB.
const LARGE: u64 = 1 << 30;
/// The same where the processor emulates the GPU, and takes its time.
const SMALL: u64 = 64 << 20;
/// Readings between two waits, so that the launch is a small part of it.
const READINGS: u32 = 8;

impl<R: Runtime> CubeBackend<R> {
    /// Bytes a second that are read from a buffer of their own: the best of three tries.
    pub(crate) async fn measure_bandwidth(&self) -> Result<f64, Fault> {
        let wanted = if self.info().kind == DeviceKind::Software { SMALL } else { LARGE };
        // A quarter of what is free at most, and no more than one buffer can be.
        let free = self.memory().free.map_or(u64::MAX, |free| free / 4);
        let bytes = wanted.min(free).min(self.largest_buffer()) / 4096 * 4096;
        if bytes == 0 {
            return Err(self.info().unsupported("no memory to measure its bandwidth with"));
        }
        let measured = self.measure(bytes).await;
        self.clean_up();
        measured
    }

    async fn measure(&self, bytes: u64) -> Result<f64, Fault> {
        let data = self.allocate("read bandwidth", bytes, Purpose::Scratch)?;
        let out = self.allocate("read bandwidth", 512, Purpose::Scratch)?;
        self.read_once(&data, &out, bytes)?;
        self.wait().await?;
        let mut best = 0.0f64;
        for _ in 0..3 {
            let start = Instant::now();
            for _ in 0..READINGS {
                self.read_once(&data, &out, bytes)?;
            }
            self.wait().await?;
            best = best.max(f64::from(READINGS) * bytes as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    fn read_once(&self, data: &Handle, out: &Handle, bytes: u64) -> Result<(), Fault> {
        let quads = (bytes / 16) as usize;
        caught(&self.info().name, || {
            // SAFETY: `quads` are in `data`, and `out` has a word.
            unsafe {
                read_bandwidth::launch_unchecked::<R>(
                    self.client,
                    CubeCount::Static(2048, 1, 1),
                    CubeDim::new_1d(UNITS),
                    ArrayArg::from_raw_parts(data.clone(), quads),
                    ArrayArg::from_raw_parts(out.clone(), 1),
                    quads as u32,
                );
            }
        })
    }

    async fn wait(&self) -> Result<(), Fault> {
        let device = &self.info().name;
        let sync = caught(device, || self.client.sync())?;
        sync.await.map_err(|error| fault(device, "read bandwidth", &error))
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::WgpuRuntime;

    #[test]
    fn a_measurement_leaves_nothing_behind() {
        let backend = CubeBackend::<WgpuRuntime>::open().unwrap();
        let before = backend.ledger().footprint();
        let rate = pollster::block_on(backend.read_bandwidth()).unwrap();
        // Any memory reads more than 10 MB/s, and none 100 TB/s.
        assert!((1e7..1e14).contains(&rate), "{rate}");
        assert_eq!(backend.ledger().footprint(), before);
        let small = CubeBackend::<WgpuRuntime>::open().unwrap().with_budget(Some(1000));
        assert!(pollster::block_on(small.read_bandwidth()).is_err());
    }
}
