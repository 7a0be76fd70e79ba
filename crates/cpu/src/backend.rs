//! The backend: wants in, slots and programs out.

use crate::bandwidth;
use crate::bound::Binder;
use crate::buffer::Shortage;
use crate::cache::Cache;
use crate::contents::Contents;
use crate::layout::CpuLayout;
use crate::lines::Lines;
use crate::math::Math;
use crate::memory::Host;
use crate::path::Path;
use crate::program::{CpuProgram, Held, Kernels, State};
use crate::scalar::Scalar;
use crate::slots::{Entry, Shared, Slots, Stored};
use crate::sweep::Sweep;
use crate::team::Team;
use crate::threads;
use halfbyte_backend::{
    Backend, Caps, DeviceInfo, DeviceKind, Fault, Format, Fut, Kind, KvRows, KvSpan, Layout, Ledger,
    LinearShape, Memory, NormShape, Program, Purpose, Segment, Slot, Stretch, Want, WeightSource,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// How a [`CpuBackend`] is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuOptions {
    /// Its name in device maps and errors.
    pub name: String,
    /// Its kernels; `None` takes what [`PATH_VARIABLE`](crate::PATH_VARIABLE) says, or the fastest.
    pub path: Option<Path>,
    /// Its arithmetic; `None` takes what [`MATH_VARIABLE`](crate::MATH_VARIABLE) says, or [`Math::Exact`].
    pub math: Option<Math>,
    /// Threads, at most 4096, and fewer where the system grants no more; `None` takes one for each physical core that this
    /// process may use.
    pub threads: Option<usize>,
    /// The most bytes it may hold, whatever the machine has.
    pub memory_limit: Option<u64>,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { name: "cpu".into(), path: None, math: None, threads: None, memory_limit: None }
    }
}

/// The host's processor as a [`Backend`].
pub struct CpuBackend {
    info: DeviceInfo,
    layout: CpuLayout,
    path: Path,
    kernels: &'static dyn Kernels,
    team: Arc<Team>,
    /// What this and the other backends of this memory hold.
    host: Rc<Host>,
    ledger: Rc<Ledger>,
    slots: RefCell<Slots>,
}

impl CpuBackend {
    /// The fastest kernels that this processor runs, on all its threads.
    ///
    /// # Errors
    /// [`Fault::Invalid`] or [`Fault::Unsupported`] if [`PATH_VARIABLE`](crate::PATH_VARIABLE) names no
    /// path or one that this processor lacks.
    pub fn new() -> Result<Self, Fault> {
        Self::with(CpuOptions::default())
    }

    /// The readable reference on one thread: what all kernels are compared to.
    pub fn scalar() -> Self {
        Self::assemble(CpuOptions::default(), Path::Scalar, &Scalar, Team::solo())
    }

    /// The fastest kernels under another name.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn named(name: impl Into<String>) -> Result<Self, Fault> {
        Self::with(CpuOptions { name: name.into(), ..CpuOptions::default() })
    }

    /// A backend to measure.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn with(options: CpuOptions) -> Result<Self, Fault> {
        let path = match options.path {
            Some(path) => path,
            None => Path::from_env()?,
        };
        let math = options.math.map_or_else(|| Math::from_env_or(Math::Exact), Ok)?;
        let kernels = path.detect(math)?;
        if path == Path::Scalar {
            return Ok(Self::assemble(options, path, kernels, Team::solo()));
        }
        let team = Team::new(options.threads.unwrap_or_else(threads::physical).min(threads::MOST));
        Ok(Self::assemble(options, path, kernels, team))
    }

    fn assemble(options: CpuOptions, path: Path, kernels: &'static dyn Kernels, team: Team) -> Self {
        let threads = team.threads();
        let math = if kernels.in_bytes() { Math::Fast } else { Math::Exact };
        let layout = CpuLayout::with_threads(threads).in_bytes(kernels.in_bytes()).named(&options.name);
        let info = DeviceInfo {
            name: options.name,
            adapter: processor(),
            driver: format!("{path}, {} threads", threads),
            kind: DeviceKind::Cpu,
            limits: vec![
                ("kernels".into(), path.to_string()),
                ("threads".into(), threads.to_string()),
                ("arithmetic".into(), math.to_string()),
            ],
        };
        let host = Rc::new(Host::new(options.memory_limit));
        let (team, ledger) = (Arc::new(team), host.ledger());
        Self { info, layout, path, kernels, team, ledger, host, slots: RefCell::default() }
    }

    /// The device `disk`: the same kernels on the same threads, but matrices stay in their files
    /// ([`WeightSource::mapped`]) and are read there at every use, the next ones ahead of time. Caches,
    /// registers and what else is written are this memory's, and count towards its limit.
    pub fn disk(&self) -> Self {
        let name = "disk";
        let info = DeviceInfo {
            name: name.into(),
            driver: format!("mapped files, read by {}", self.info.driver),
            kind: DeviceKind::Disk,
            ..self.info.clone()
        };
        Self {
            info,
            layout: self.layout.clone().in_bytes(false).named(name).in_files(),
            path: self.path,
            kernels: self.kernels,
            team: self.team.clone(),
            ledger: self.host.ledger(),
            host: Rc::clone(&self.host),
            slots: RefCell::default(),
        }
    }

    fn in_files(&self) -> bool {
        self.info.kind == DeviceKind::Disk
    }

    /// The kernels that run.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Refuses an allocation that would leave less than nothing: Linux grants it and kills us later.
    fn admit(&self, name: &str, what: Purpose, wanted: u64) -> Result<(), Fault> {
        match self.memory().free {
            Some(free) if wanted > free => Err(self.shortage(name, what, Shortage(wanted))),
            _ => Ok(()),
        }
    }

    fn shortage(&self, name: &str, what: Purpose, shortage: Shortage) -> Fault {
        Fault::OutOfMemory {
            device: self.info.name.clone(),
            name: name.into(),
            wanted: shortage.0,
            free: self.memory().free,
            what,
        }
    }

    fn reserve_all(&self, wants: &[Want]) -> Result<Vec<Slot>, Fault> {
        let sizes: Vec<u64> =
            wants.iter().map(|want| self.layout.want(&want.kind)).collect::<Result<_, _>>()?;
        let mut left = self.memory().free;
        for (want, &size) in wants.iter().zip(&sizes) {
            left = match left {
                Some(free) if size > free => {
                    return Err(Fault::OutOfMemory {
                        device: self.info.name.clone(),
                        name: want.name.clone(),
                        wanted: size,
                        free: Some(free),
                        what: want.purpose,
                    });
                }
                Some(free) => Some(free - size),
                None => None,
            };
        }
        let mut made = Vec::with_capacity(wants.len());
        for want in wants {
            let stored = Stored::reserve(&want.kind, self.in_files(), self.kernels.in_bytes())
                .map_err(|shortage| self.shortage(&want.name, want.purpose, shortage))?;
            made.push(stored);
        }
        // Weights are read one matrix after the other, so that they share large pages.
        for work in [Lines::ask_for_large_pages, Lines::settle] {
            for stored in &made {
                if let Stored::Linear(matrix) = stored {
                    matrix.write().lines().for_each(work);
                }
            }
        }
        let mut slots = self.slots.borrow_mut();
        let entries = wants.iter().zip(made);
        entries
            .map(|(want, stored)| {
                let mut tickets = vec![self.ledger.enter(&want.name, want.purpose, stored.bytes())];
                let mapped = self.layout.want_footprint(want)?.mapped();
                if mapped > 0 {
                    tickets.push(self.ledger.enter(&want.name, Purpose::Mapped, mapped));
                }
                Ok(slots.insert(Entry { stored, tickets }))
            })
            .collect()
    }

    fn stored(&self, slot: Slot) -> Result<Stored, Fault> {
        self.slots.borrow().get(slot).cloned()
    }

    fn cache(&self, slot: Slot) -> Result<Shared<Cache>, Fault> {
        match self.stored(slot)? {
            Stored::Kv(cache) => Ok(cache),
            _ => Err(Fault::Internal(format!("slot {} is no KV cache", slot.0))),
        }
    }

    async fn fill(&self, slot: Slot, want: &Want, source: &dyn WeightSource) -> Result<(), Fault> {
        match (&want.kind, self.stored(slot)?) {
            (Kind::Linear(shape), Stored::Linear(matrix)) => {
                same_shape(&want.name, shape, &matrix.read().shape)?;
                for (index, segment) in shape.segments.iter().enumerate() {
                    // What lies transposed in its file is copied, turned.
                    let dense = matches!(segment.format, Format::Dense(_));
                    if self.in_files() && !(dense && segment.transposed) {
                        let mapped = source.mapped(segment).await?.ok_or_else(|| self.in_no_file(segment))?;
                        matrix.write().map(index, mapped)?;
                    } else {
                        let canonical = source.segment(segment).await?;
                        matrix.write().fill(index, canonical)?;
                    }
                    if let Some(bias) = &segment.bias {
                        let values = source.vector(bias, segment.rows).await?;
                        matrix.write().fill_bias(index, &values)?;
                    }
                }
                Ok(())
            }
            (Kind::Norm(NormShape { len, weight, bias }), Stored::Norm(norm)) => {
                let values = source.vector(weight, *len).await?;
                copy(weight, &values, &mut norm.write().weight)?;
                if let Some(bias) = bias {
                    let values = source.vector(bias, *len).await?;
                    copy(bias, &values, &mut norm.write().bias)?;
                }
                Ok(())
            }
            (Kind::Rope(_), Stored::Rope(_)) | (Kind::Kv(_), Stored::Kv(_)) => Ok(()),
            _ => Err(Fault::Internal(format!("slot {} was not reserved for {}", slot.0, want.name))),
        }
    }

    fn in_no_file(&self, segment: &Segment) -> Fault {
        let (tensor, format) = (&segment.tensor, segment.format);
        self.info.unsupported(format!("{tensor} lies in no file as {format:?}; quantize the model first"))
    }

    fn program(&self, stretch: &Stretch, slots: &[Slot], caps: Caps) -> Result<CpuProgram, Fault> {
        let footprint = self.layout.program(stretch, &caps)?;
        let stored: Vec<Stored> = slots.iter().map(|&slot| self.stored(slot)).collect::<Result<_, _>>()?;
        let binder = Binder { stored: stored.iter().collect() };
        let steps: Vec<_> = stretch.steps.iter().map(|step| binder.step(step)).collect::<Result<_, _>>()?;
        self.admit("a program", Purpose::Scratch, footprint.total())?;
        let sizes = self.layout.sizes(stretch, &caps)?;
        let sweep = self.in_files().then(|| Sweep::new(&steps, self.host.limit()));
        let state = State::new(stretch, steps, caps, &sizes, self.team.clone())
            .map_err(|shortage| self.shortage("a program", Purpose::Scratch, shortage))?;
        let tickets = footprint
            .iter()
            .map(|(purpose, bytes)| self.ledger.enter(&format!("{purpose} of a program"), purpose, bytes))
            .collect();
        let held = Held::new(self.ledger.clone(), tickets);
        Ok(CpuProgram::new(self.kernels, state, sweep.transpose()?, held))
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn layout(&self) -> &dyn Layout {
        &self.layout
    }

    fn memory(&self) -> Memory {
        self.host.memory()
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        Box::pin(async move { self.reserve_all(wants) })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        Box::pin(self.fill(slot, want, source))
    }

    fn release(&self, slots: &[Slot]) {
        for &slot in slots {
            if let Some(entry) = self.slots.borrow_mut().remove(slot) {
                entry.tickets.into_iter().for_each(|ticket| self.ledger.strike(ticket));
            }
        }
    }

    fn contents<'a>(&'a self, slot: Slot, want: &'a Want) -> Result<Box<dyn WeightSource + 'a>, Fault> {
        Ok(Box::new(Contents::new(self.stored(slot)?, want)?))
    }

    fn moves_kv(&self) -> bool {
        true
    }

    fn read_kv<'a>(&'a self, slot: Slot, span: KvSpan) -> Fut<'a, KvRows> {
        Box::pin(async move { self.cache(slot)?.read().rows(&span) })
    }

    fn write_kv<'a>(&'a self, slot: Slot, span: KvSpan, rows: &'a KvRows) -> Fut<'a, ()> {
        Box::pin(async move { self.cache(slot)?.write().set_rows(&span, rows) })
    }

    fn read_bandwidth(&self) -> Fut<'_, f64> {
        Box::pin(async move {
            // What of its files memory keeps is read as fast as memory, the rest as fast as a disk: no one limit.
            match self.in_files() {
                true => Err(self.info.unsupported("no measurement of its read bandwidth")),
                false => bandwidth::read(&self.team, &self.memory(), &self.info),
            }
        })
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move { Ok(Box::new(self.program(stretch, slots, caps)?) as Box<dyn Program>) })
    }
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuBackend({}, {})", self.info.name, self.path)
    }
}

fn same_shape(name: &str, wanted: &LinearShape, held: &LinearShape) -> Result<(), Fault> {
    if held.lies_as(wanted) {
        Ok(())
    } else {
        Err(Fault::Internal(format!("the slot of {name} has another shape")))
    }
}

fn copy(name: &str, from: &[f32], to: &mut [f32]) -> Result<(), Fault> {
    if from.len() != to.len() {
        return Err(Fault::Source(format!("{name} has {} values, not {}", from.len(), to.len())));
    }
    to.copy_from_slice(from);
    Ok(())
}

/// The processor's name as Linux knows it.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
