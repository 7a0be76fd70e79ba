//! The driver's compiled pipelines, kept on the disk where the adapter can give them (Vulkan).

use crate::kept_file::KeptFile;
use std::path::Path;

/// A cache that pipelines are made through, and the file it goes to.
#[derive(Debug)]
pub(crate) struct PipelineCache {
    cache: wgpu::PipelineCache,
    file: KeptFile,
}

impl PipelineCache {
    /// The cache of a device, filled from `dir` if an earlier start left it there. `None` where the device has
    /// no such thing.
    pub(crate) fn open(device: &wgpu::Device, key: &str, dir: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = KeptFile::new(dir, "pipelines", key);
        let data = file.read();
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the data is what `get_data` gave, for this adapter and driver and by this version, which the file's
        // key says, and as it was written, which its checksum says. wgpu and the driver check their own headers too.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, file })
    }

    /// The cache for a pipeline's descriptor.
    pub(crate) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Leaves what is compiled for the next start.
    pub(crate) fn save(&self) {
        if let Some(data) = self.cache.get_data() {
            self.file.write(&data);
        }
    }
}
