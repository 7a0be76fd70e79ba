//! The backend on one adapter.

use crate::adapters::{adapters, describe};
use crate::gpu::{Allocator, Gpu, Trouble};
use crate::held::{Held, KvHeld, LinearHeld};
use crate::kept_file::KeptFile;
use crate::kv_plan::KvPlan;
use crate::kv_rows;
use crate::layout::WgpuLayout;
use crate::linear_plan::LinearPlan;
use crate::memory;
use crate::meter::Meter;
use crate::options::Options;
use crate::pipeline::Pipelines;
use crate::pipeline_cache::PipelineCache;
use crate::program::WgpuProgram;
use crate::program_plan::ProgramPlan;
use crate::staging::{Staging, Writer};
use crate::tuning::Tuning;
use crate::tuning_measure::{Choice, LOAD};
use crate::tuning_table::{candidates, known};
use crate::upload;
use crate::wait::reclaim;
use halfbyte_backend::{
    Backend, Caps, DeviceInfo, Fault, Fut, Kind, KvRows, KvSpan, Layout, Ledger, Memory, Program, Slot,
    Stretch, Want, WeightSource,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

/// A [`Backend`] on WebGPU: Vulkan, Metal, DirectX 12, or the browser's own.
pub struct WgpuBackend {
    gpu: Rc<Gpu>,
    layout: WgpuLayout,
    slots: RefCell<HashMap<u64, Rc<Held>>>,
    next: Cell<u64>,
    /// Shapes that the first reservation chooses.
    choice: RefCell<Option<Choice>>,
}

impl WgpuBackend {
    /// Every device that [`open`](Self::open) can open, in its numbering: real GPUs first.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] saying how to get one, if there is none.
    pub async fn all() -> Result<Vec<DeviceInfo>, Fault> {
        let adapters = adapters().await?;
        Ok(adapters.iter().enumerate().map(|(index, adapter)| describe(adapter, index)).collect())
    }

    /// Opens device `wgpu:{index}`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if there is no such device or it lacks WebGPU's default limits;
    /// [`Fault::OutOfMemory`] if not even the staging buffers fit.
    pub async fn open(index: usize, options: Options) -> Result<Self, Fault> {
        let adapters = adapters().await?;
        let Some(adapter) = adapters.get(index) else {
            return Err(Fault::Unsupported {
                device: format!("wgpu:{index}"),
                what: format!("there are {} such devices, numbered from 0", adapters.len()),
            });
        };
        Self::on(adapter, index, options).await
    }

    /// Opens `adapter` as device `wgpu:{index}`: one that [`all`](Self::all) does not list, such as an
    /// implementation of WebGPU of the caller's own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn on(adapter: &wgpu::Adapter, index: usize, options: Options) -> Result<Self, Fault> {
        let info = describe(adapter, index);
        let wanted = wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::SHADER_F16;
        let features = adapter.features() & wanted;
        let offered = adapter.limits();
        // The defaults, but as much in one buffer as there is to be had, and twice the workgroup memory.
        let workgroup_memory = offered.max_compute_workgroup_storage_size.min(32 << 10);
        let limits = wgpu::Limits {
            max_buffer_size: offered.max_buffer_size,
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            max_compute_workgroup_storage_size: workgroup_memory,
            ..wgpu::Limits::default()
        };
        let request = wgpu::DeviceDescriptor {
            label: Some("halfbyte"),
            required_features: features,
            required_limits: limits.clone(),
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = adapter.request_device(&request).await;
        let (device, queue) = opened.map_err(|error| info.unsupported(error.to_string()))?;
        let trouble = Trouble::default();
        trouble.listen(&device);

        let subgroup = adapter.get_info().subgroup_min_size.max(1);
        let wanted = options.subgroups.unwrap_or(true) && features.contains(wgpu::Features::SUBGROUP);
        let subgroup = wanted.then_some(subgroup);
        let listed = options.tuning.or_else(|| known(adapter.get_info().vendor, info.kind, subgroup));
        let choice =
            listed.is_none().then(|| Choice { candidates: candidates(subgroup), load: LOAD, file: None });
        let tuning = listed.unwrap_or_else(|| Tuning::gpu(subgroup));
        let half_slabs = tuning.half_slabs && features.contains(wgpu::Features::SHADER_F16);
        let staged = if workgroup_memory < 32 << 10 { 512 } else { tuning.staged };
        let tuning = Tuning { subgroup, half_slabs, staged, ..tuning };
        let layout = WgpuLayout::new(&info.name, &limits)
            .with_shards(options.max_binding.unwrap_or(u64::MAX))
            .with_splits(options.splits);
        let ledger = Rc::new(Ledger::new());
        let allocator =
            Allocator { device: &device, name: &info.name, ledger: &ledger, budget: options.budget };
        let staging = Staging::new(&allocator).await?;
        let gpu = Gpu {
            device,
            queue,
            info,
            ledger,
            pipelines: Pipelines::new(options.checked),
            staging,
            tuning: Cell::new(tuning),
            budget: options.budget,
            trouble,
            meter: Meter::default(),
        };
        gpu.check()?;
        Ok(Self {
            gpu: Rc::new(gpu),
            layout,
            slots: RefCell::default(),
            next: Cell::new(0),
            choice: RefCell::new(choice),
        })
    }

    /// Keeps in `dir` from now on, and takes from there what an earlier start left: compiled pipelines, where the
    /// driver can give them (Vulkan), and measured shapes of kernels, where nothing is known of the adapter. They are
    /// kept for this adapter, driver and version of halfbyte; a file that cannot be read or written costs the time of
    /// compiling or measuring again, nothing else.
    pub fn keep_in(&self, dir: &Path) {
        let info = &self.gpu.info;
        let key = format!("halfbyte {}, {}, {}", env!("CARGO_PKG_VERSION"), info.adapter, info.driver);
        self.gpu.pipelines.keep(PipelineCache::open(&self.gpu.device, &key, dir));
        if let Some(choice) = &mut *self.choice.borrow_mut() {
            choice.file = Some(KeptFile::new(dir, "shapes", &key));
        }
    }

    /// Shapes what is compiled from now on.
    pub(crate) fn shape(&self, tuning: Tuning) {
        self.gpu.tuning.set(Tuning { subgroup: self.gpu.tuning.get().subgroup, ..tuning });
    }

    /// Leaves `choice` to the first reservation.
    #[cfg(test)]
    pub(crate) fn measure_later(&self, choice: Choice) {
        *self.choice.borrow_mut() = Some(choice);
    }

    /// The account of bytes, for planning without the device.
    pub fn wgpu_layout(&self) -> &WgpuLayout {
        &self.layout
    }

    fn held(&self, slot: Slot) -> Result<Rc<Held>, Fault> {
        let held = self.slots.borrow().get(&slot.0).cloned();
        held.ok_or_else(|| {
            Fault::Internal(format!("{}: slot {} is not reserved", self.gpu.info.name, slot.0))
        })
    }

    /// Allocates one want and fills it if that needs no source.
    async fn hold(&self, want: &Want) -> Result<Held, Fault> {
        let plans = self.layout.buffers(want)?;
        let mut made = self.gpu.allocator().allocate(&plans).await?.into_iter();
        let mut one = || made.next().ok_or_else(|| Fault::Internal("a want without a buffer".into()));
        Ok(match &want.kind {
            Kind::Linear(shape) => {
                let plan = LinearPlan::new(shape, &self.layout.bounds)?;
                Held::Linear(LinearHeld {
                    shards: plan.shards.iter().map(|_| one()).collect::<Result<_, _>>()?,
                    scales: plan.scales.is_some().then(&mut one).transpose()?,
                    tables: (plan.table_words > 0).then(&mut one).transpose()?,
                    plan,
                })
            }
            Kind::Norm(shape) => Held::Norm { buffer: one()?, len: shape.len },
            Kind::Rope(shape) => {
                let buffer = one()?;
                let mut writer = Writer::new(&self.gpu);
                let table = shape.table();
                writer.write(&buffer.buffer, 0, bytemuck::cast_slice(&table.values)).await?;
                writer.flush().await?;
                Held::Rope { buffer, pairs: table.pairs, positions: shape.positions }
            }
            Kind::Kv(shape) => {
                let plan = KvPlan::new(shape, &self.layout.bounds)?;
                let shards =
                    plan.shards.iter().map(|_| Ok((one()?, one()?))).collect::<Result<_, Fault>>()?;
                Held::Kv(KvHeld { plan, shards })
            }
        })
    }
}

impl Backend for WgpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.gpu.info
    }

    fn layout(&self) -> &dyn Layout {
        &self.layout
    }

    fn memory(&self) -> Memory {
        memory::now(&self.gpu)
    }

    fn ledger(&self) -> &Ledger {
        &self.gpu.ledger
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        Box::pin(async move {
            self.gpu.check()?;
            // Taken first: measuring reserves, too.
            let choice = self.choice.borrow_mut().take();
            if let Some(choice) = choice {
                let usual = self.gpu.tuning.get();
                self.shape(choice.make(self).await.unwrap_or(usual));
            }
            let mut held = Vec::with_capacity(wants.len());
            for want in wants {
                match self.hold(want).await {
                    Ok(one) => held.push(one),
                    Err(fault) => {
                        drop(held);
                        reclaim(&self.gpu.device);
                        return Err(fault);
                    }
                }
            }
            let mut slots = self.slots.borrow_mut();
            let enter = |one| {
                let slot = self.next.replace(self.next.get() + 1);
                slots.insert(slot, Rc::new(one));
                Slot(slot)
            };
            Ok(held.into_iter().map(enter).collect())
        })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        Box::pin(async move {
            self.gpu.check()?;
            let held = self.held(slot)?;
            match (held.as_ref(), &want.kind) {
                (Held::Linear(held), Kind::Linear(shape)) => {
                    if held.plan != LinearPlan::new(shape, &self.layout.bounds)? {
                        return Err(Fault::Internal(format!("{} was reserved in another shape", want.name)));
                    }
                    upload::linear(&self.gpu, shape, held, source).await
                }
                (Held::Norm { buffer, len }, Kind::Norm(shape)) if *len == shape.len => {
                    upload::norm(&self.gpu, shape, &buffer.buffer, source).await
                }
                (Held::Rope { .. }, Kind::Rope(_)) | (Held::Kv(_), Kind::Kv(_)) => Ok(()),
                _ => Err(Fault::Internal(format!("{} was reserved as something else", want.name))),
            }
        })
    }

    fn moves_kv(&self) -> bool {
        true
    }

    fn read_kv<'a>(&'a self, slot: Slot, span: KvSpan) -> Fut<'a, KvRows> {
        Box::pin(async move {
            self.gpu.check()?;
            let held = self.held(slot)?;
            kv_rows::get(&self.gpu, cache(&held, slot)?, &span).await
        })
    }

    fn write_kv<'a>(&'a self, slot: Slot, span: KvSpan, rows: &'a KvRows) -> Fut<'a, ()> {
        Box::pin(async move {
            self.gpu.check()?;
            let held = self.held(slot)?;
            kv_rows::set(&self.gpu, cache(&held, slot)?, &span, rows).await
        })
    }

    fn read_bandwidth(&self) -> Fut<'_, f64> {
        Box::pin(crate::bandwidth::read(&self.gpu, self.layout.bounds.binding))
    }

    fn release(&self, slots: &[Slot]) {
        for slot in slots {
            self.slots.borrow_mut().remove(&slot.0);
        }
        reclaim(&self.gpu.device);
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            self.gpu.check()?;
            if slots.len() != stretch.wants.len() {
                return Err(Fault::Internal(format!(
                    "{} slots for {} wants",
                    slots.len(),
                    stretch.wants.len()
                )));
            }
            let plan = ProgramPlan::new(stretch, &caps, &self.layout.bounds)?;
            let held = slots.iter().map(|&slot| self.held(slot)).collect::<Result<Vec<_>, _>>()?;
            let buffers = self.gpu.allocator().allocate(&plan.buffers).await?;
            let program = WgpuProgram::new(self.gpu.clone(), stretch.clone(), held, plan, buffers, caps)?;
            self.gpu.pipelines.save();
            Ok(Box::new(program) as Box<dyn Program>)
        })
    }
}

fn cache(held: &Held, slot: Slot) -> Result<&KvHeld, Fault> {
    match held {
        Held::Kv(held) => Ok(held),
        _ => Err(Fault::Internal(format!("slot {} is no KV cache", slot.0))),
    }
}
