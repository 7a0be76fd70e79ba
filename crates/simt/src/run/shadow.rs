//! Who touched which word, and whether anything ordered them.

/// Several lanes.
const MANY: u64 = 0xffff;

/// A word of workgroup memory. Each access is `epoch << 16 | lane`; epochs are counted by barriers and
/// never begin anew, so that a word last written before this workgroup's first epoch is unwritten.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SharedWord {
    write: u64,
    read: u64,
    atomic: u64,
}

/// What is wrong with an access to workgroup memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Unwritten,
    /// With this lane, or several.
    Race(Option<u64>),
}

#[inline(always)]
fn conflict(access: u64, epoch: u64, lane: u64) -> bool {
    access >> 16 == epoch && access & 0xffff != lane
}

fn other(access: u64) -> Fault {
    Fault::Race(Some(access & 0xffff).filter(|&lane| lane != MANY))
}

#[inline(always)]
fn record(access: &mut u64, epoch: u64, lane: u64) {
    if *access >> 16 != epoch {
        *access = epoch << 16 | lane;
    } else if *access & 0xffff != lane {
        *access |= MANY;
    }
}

impl SharedWord {
    #[inline(always)]
    pub(super) fn read(&mut self, epoch: u64, first: u64, lane: u64) -> Option<Fault> {
        let fault = if conflict(self.write, epoch, lane) {
            Some(other(self.write))
        } else if conflict(self.atomic, epoch, lane) {
            Some(other(self.atomic))
        } else if self.write >> 16 < first && self.atomic >> 16 < first {
            Some(Fault::Unwritten)
        } else {
            None
        };
        record(&mut self.read, epoch, lane);
        fault
    }

    #[inline(always)]
    pub(super) fn write(&mut self, epoch: u64, lane: u64) -> Option<Fault> {
        let conflicting = [self.write, self.read, self.atomic];
        let conflicting = conflicting.into_iter().find(|&access| conflict(access, epoch, lane));
        record(&mut self.write, epoch, lane);
        conflicting.map(other)
    }

    pub(super) fn atomic(&mut self, epoch: u64, first: u64, lane: u64, reads: bool) -> Option<Fault> {
        let conflicting = [self.write, self.read].into_iter().find(|&access| conflict(access, epoch, lane));
        let unwritten = reads && self.write >> 16 < first && self.atomic >> 16 < first;
        record(&mut self.atomic, epoch, lane);
        conflicting.map(other).or(unwritten.then_some(Fault::Unwritten))
    }
}

/// An invocation at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Actor {
    pub(super) workgroup: u32,
    /// Storage barriers that its workgroup has passed.
    pub(super) epoch: u32,
    pub(super) lane: u16,
}

/// Who did something to a word of storage in this dispatch, as far as it matters for who comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Who {
    #[default]
    Nobody,
    One,
    /// Several lanes of one workgroup, since its last storage barrier.
    Lanes,
    Workgroups,
}

#[derive(Debug, Clone, Copy, Default)]
struct Access {
    who: Who,
    lane: u16,
    workgroup: u32,
    epoch: u32,
}

impl Access {
    #[inline(always)]
    fn conflicts(&self, actor: &Actor) -> bool {
        match self.who {
            Who::Nobody => false,
            Who::One => {
                self.workgroup != actor.workgroup || (self.epoch == actor.epoch && self.lane != actor.lane)
            }
            Who::Lanes => self.workgroup != actor.workgroup || self.epoch == actor.epoch,
            Who::Workgroups => true,
        }
    }

    #[inline(always)]
    fn record(&mut self, actor: &Actor) {
        let one = Access { who: Who::One, lane: actor.lane, workgroup: actor.workgroup, epoch: actor.epoch };
        match self.who {
            Who::Nobody => *self = one,
            Who::Workgroups => {}
            _ if self.workgroup != actor.workgroup => self.who = Who::Workgroups,
            _ if self.epoch != actor.epoch => *self = one,
            _ if self.who == Who::One && self.lane != actor.lane => self.who = Who::Lanes,
            _ => {}
        }
    }

    fn describe(&self) -> String {
        match self.who {
            Who::Nobody => "nobody".into(),
            Who::One => format!("lane {} of workgroup {}", self.lane, self.workgroup),
            Who::Lanes => format!("several lanes of workgroup {}", self.workgroup),
            Who::Workgroups => "several workgroups".into(),
        }
    }
}

/// A word of a storage buffer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StorageWord {
    /// The dispatch of which the rest tells.
    dispatch: u32,
    write: Access,
    read: Access,
    atomic: Access,
}

impl StorageWord {
    #[inline(always)]
    fn enter(&mut self, dispatch: u32) {
        if self.dispatch != dispatch {
            *self = Self { dispatch, ..Self::default() };
        }
    }

    /// With whom a plain read is in a race.
    #[inline(always)]
    pub(super) fn read(&mut self, dispatch: u32, actor: &Actor) -> Option<String> {
        self.enter(dispatch);
        let other = [self.write, self.atomic].into_iter().find(|access| access.conflicts(actor));
        self.read.record(actor);
        other.map(|access| format!("written by {}", access.describe()))
    }

    /// With whom a plain write is in a race; `changes` if the word was another.
    #[inline(always)]
    pub(super) fn write(&mut self, dispatch: u32, actor: &Actor, changes: bool) -> Option<String> {
        self.enter(dispatch);
        let race = if self.read.conflicts(actor) {
            Some(format!("read by {}", self.read.describe()))
        } else if self.atomic.conflicts(actor) {
            Some(format!("used by atomics of {}", self.atomic.describe()))
        } else if changes && self.write.conflicts(actor) {
            Some(format!("written otherwise by {}", self.write.describe()))
        } else {
            None
        };
        self.write.record(actor);
        race
    }

    /// With whom an atomic access is in a race.
    pub(super) fn atomic(&mut self, dispatch: u32, actor: &Actor) -> Option<String> {
        self.enter(dispatch);
        let other = [self.write, self.read].into_iter().find(|access| access.conflicts(actor));
        self.atomic.record(actor);
        other.map(|access| format!("used plainly by {}", access.describe()))
    }
}
