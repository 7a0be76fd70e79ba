//! A backend whose allocations fail and whose device is lost on request, to see what becomes of it.

use crate::{
    Answer, Backend, Caps, DeviceInfo, Fault, Fut, KvRows, KvSpan, Layout, Ledger, Memory, Program, Purpose,
    Rows, Slot, StepCost, Stretch, Ticket, Want, WeightSource,
};
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

/// What is to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultSpec {
    /// This allocation fails, counted from 1: each want of a reservation is one, each program another.
    Alloc(u64),
    /// So many allocations fail from this one on: it and what is tried in its place.
    Allocs {
        /// The first that fails, counted from 1.
        first: u64,
        /// How many fail.
        count: u64,
    },
    /// The device is lost at this submission, counted from 1.
    DeviceLost(u64),
}

impl FromStr for FaultSpec {
    type Err = String;

    /// Reads `alloc:N`, `alloc:N*COUNT` or `device-lost:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected alloc:N, alloc:N*COUNT or device-lost:N with N from 1 up");
        let number = |text: &str| text.parse().ok().filter(|&number| number > 0).ok_or_else(wrong);
        let (kind, numbers) = text.split_once(':').ok_or_else(wrong)?;
        match (kind, numbers.split_once('*')) {
            ("alloc", None) => Ok(Self::Alloc(number(numbers)?)),
            ("alloc", Some((first, count))) => {
                Ok(Self::Allocs { first: number(first)?, count: number(count)? })
            }
            ("device-lost", None) => Ok(Self::DeviceLost(number(numbers)?)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alloc(nth) => write!(f, "alloc:{nth}"),
            Self::Allocs { first, count } => write!(f, "alloc:{first}*{count}"),
            Self::DeviceLost(count) => write!(f, "device-lost:{count}"),
        }
    }
}

/// What has happened on a [`Faulty`] device and those that took its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Allocations that were asked for.
    pub allocations: u64,
    /// Submissions that were asked for.
    pub submissions: u64,
}

/// A [`FaultSpec`] and how near it is. It outlives the device that it happens to: the device that is
/// opened in its place goes on counting, and nothing happens twice.
#[derive(Debug)]
pub struct FaultPlan {
    spec: FaultSpec,
    allocations: Cell<u64>,
    submissions: Cell<u64>,
}

impl FaultPlan {
    /// A plan at its beginning.
    pub fn new(spec: FaultSpec) -> Self {
        Self { spec, allocations: Cell::new(0), submissions: Cell::new(0) }
    }

    /// What has been counted so far.
    pub fn counts(&self) -> FaultCounts {
        FaultCounts { allocations: self.allocations.get(), submissions: self.submissions.get() }
    }

    /// Counts an allocation; whether it is the one that fails.
    fn allocate(&self) -> bool {
        self.allocations.set(self.allocations.get() + 1);
        let now = self.allocations.get();
        match self.spec {
            FaultSpec::Alloc(nth) => now == nth,
            FaultSpec::Allocs { first, count } => now >= first && now - first < count,
            FaultSpec::DeviceLost(_) => false,
        }
    }

    /// Counts a submission; whether it is the one that loses the device.
    fn submit(&self) -> bool {
        self.submissions.set(self.submissions.get() + 1);
        self.spec == FaultSpec::DeviceLost(self.submissions.get())
    }
}

/// A backend that fails as a [`FaultPlan`] says and otherwise does what the one within does.
///
/// Once it is lost, everything that is asked of it is answered with [`Fault::Lost`], answers that were on
/// their way included; only another backend in its place helps.
pub struct Faulty {
    inner: Rc<dyn Backend>,
    plan: Rc<FaultPlan>,
    lost: Rc<Cell<bool>>,
}

impl Faulty {
    /// Wraps a backend.
    pub fn new(inner: Rc<dyn Backend>, plan: Rc<FaultPlan>) -> Self {
        Self { inner, plan, lost: Rc::default() }
    }

    fn check(&self) -> Result<(), Fault> {
        check(&self.lost, &self.info().name)
    }

    fn out_of_memory(&self, name: String, wanted: u64, what: Purpose) -> Fault {
        Fault::OutOfMemory { device: self.info().name.clone(), name, wanted, free: None, what }
    }
}

/// The fault of a lost device.
fn check(lost: &Cell<bool>, device: &str) -> Result<(), Fault> {
    if !lost.get() {
        return Ok(());
    }
    Err(Fault::Lost { device: device.to_owned(), reason: "as --fault asked for".into() })
}

impl Backend for Faulty {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn layout(&self) -> &dyn Layout {
        self.inner.layout()
    }

    fn memory(&self) -> Memory {
        self.inner.memory()
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        Box::pin(async move {
            self.check()?;
            for want in wants {
                if self.plan.allocate() {
                    let bytes = self.layout().want(&want.kind)?;
                    return Err(self.out_of_memory(want.name.clone(), bytes, want.purpose));
                }
            }
            self.inner.reserve(wants).await
        })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        Box::pin(async move {
            self.check()?;
            self.inner.upload(slot, want, source).await
        })
    }

    fn release(&self, slots: &[Slot]) {
        self.inner.release(slots);
    }

    fn contents<'a>(&'a self, slot: Slot, want: &'a Want) -> Result<Box<dyn WeightSource + 'a>, Fault> {
        self.check()?;
        self.inner.contents(slot, want)
    }

    fn moves_kv(&self) -> bool {
        self.inner.moves_kv()
    }

    fn read_kv<'a>(&'a self, slot: Slot, span: KvSpan) -> Fut<'a, KvRows> {
        Box::pin(async move {
            self.check()?;
            self.inner.read_kv(slot, span).await
        })
    }

    fn write_kv<'a>(&'a self, slot: Slot, span: KvSpan, rows: &'a KvRows) -> Fut<'a, ()> {
        Box::pin(async move {
            self.check()?;
            self.inner.write_kv(slot, span, rows).await
        })
    }

    fn read_bandwidth(&self) -> Fut<'_, f64> {
        Box::pin(async move {
            self.check()?;
            self.inner.read_bandwidth().await
        })
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            self.check()?;
            if self.plan.allocate() {
                let bytes = self.layout().program(stretch, &caps)?.total();
                let name = format!("the program of {} steps", stretch.steps.len());
                return Err(self.out_of_memory(name, bytes, Purpose::Activations));
            }
            let inner = self.inner.compile(stretch, slots, caps).await?;
            let (plan, lost) = (Rc::clone(&self.plan), Rc::clone(&self.lost));
            let program = FaultyProgram { inner, plan, lost, device: self.info().name.clone() };
            Ok(Box::new(program) as Box<dyn Program>)
        })
    }
}

struct FaultyProgram {
    inner: Box<dyn Program>,
    plan: Rc<FaultPlan>,
    lost: Rc<Cell<bool>>,
    device: String,
}

impl Program for FaultyProgram {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        check(&self.lost, &self.device)?;
        if self.plan.submit() {
            self.lost.set(true);
            check(&self.lost, &self.device)?;
        }
        let ticket = self.inner.submit(rows)?;
        let (lost, device) = (Rc::clone(&self.lost), self.device.clone());
        Ok(Box::pin(async move {
            let answer: Answer = ticket.await?;
            check(&lost, &device)?;
            Ok(answer)
        }))
    }

    fn samples(&self) -> bool {
        self.inner.samples()
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        Box::pin(async move {
            // What runs within ends in any case.
            self.inner.drain().await?;
            check(&self.lost, &self.device)
        })
    }

    fn counts(&self) -> (u64, u64) {
        self.inner.counts()
    }

    fn passes(&self) -> u64 {
        self.inner.passes()
    }

    fn profile<'a>(&'a mut self, rows: &'a Rows<'a>) -> Fut<'a, Vec<StepCost>> {
        self.inner.profile(rows)
    }

    fn driver_time(&mut self) -> Option<Duration> {
        self.inner.driver_time()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_as_people_write_them() {
        for (text, spec) in [
            ("alloc:3", FaultSpec::Alloc(3)),
            ("alloc:3*2", FaultSpec::Allocs { first: 3, count: 2 }),
            ("device-lost:17", FaultSpec::DeviceLost(17)),
        ] {
            assert_eq!(text.parse(), Ok(spec));
            assert_eq!(spec.to_string(), text);
        }
        for text in [
            "",
            "alloc",
            "alloc:0",
            "alloc:-1",
            "alloc:x",
            "alloc:1*0",
            "alloc:*2",
            "device-lost:1*2",
            "lost:1",
            "device-lost:",
        ] {
            assert!(text.parse::<FaultSpec>().unwrap_err().contains("alloc:N"), "{text}");
        }
    }

    #[test]
    fn each_fault_happens_once() {
        let plan = FaultPlan::new(FaultSpec::Alloc(2));
        assert_eq!([plan.allocate(), plan.allocate(), plan.allocate()], [false, true, false]);
        assert!(!plan.submit() && !plan.submit());
        assert_eq!(plan.counts(), FaultCounts { allocations: 3, submissions: 2 });
        let plan = FaultPlan::new(FaultSpec::Allocs { first: 2, count: 2 });
        assert_eq!(
            [plan.allocate(), plan.allocate(), plan.allocate(), plan.allocate()],
            [false, true, true, false]
        );
        let plan = FaultPlan::new(FaultSpec::DeviceLost(1));
        assert_eq!([plan.submit(), plan.submit()], [true, false]);
    }
}
