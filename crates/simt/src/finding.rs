//! What the checks found.

use std::collections::HashMap;
use std::fmt;

/// What kind of defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Two invocations use a word of workgroup memory with no barrier between, and at least one writes.
    WorkgroupRace,
    /// Two invocations use a word of a storage buffer in one dispatch, unordered: one reads and one
    /// writes, or both write different values.
    StorageRace,
    /// Workgroup memory is read that this workgroup has not written.
    Uninitialized,
    /// An index beyond its buffer, array or vector.
    OutOfBounds,
    /// A barrier that not all invocations of the workgroup reach.
    DivergentBarrier,
    /// A subgroup operation that only some invocations of a subgroup reach.
    DivergentSubgroup,
    /// A subgroup operation that reads from an invocation that is not there.
    AbsentLane,
    /// A value that must be the same in all invocations and is not.
    NotUniform,
    /// An integer divided by zero, or shifted by its width or more.
    Arithmetic,
    /// A loop that seems not to end.
    Runaway,
}

/// One defect of a shader, however often it showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kind.
    pub kind: Kind,
    /// The shader's label.
    pub shader: String,
    /// The line of its source, from 1; 0 if it is not known.
    pub line: u32,
    /// That line.
    pub text: String,
    /// What happened the first time: variable, element, invocations.
    pub what: String,
    /// How often it happened.
    pub times: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, shader, line, text, what, times } = self;
        write!(f, "{kind:?} in {shader}, line {line} `{text}`: {what} ({times} times)")
    }
}

/// Where in a source an operation stands: the first byte of its text, from 1; 0 is nowhere.
pub(crate) type Place = u32;

/// Findings by shader, place and kind.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    found: Vec<Finding>,
    known: HashMap<(u64, Place, Kind), usize>,
}

impl Findings {
    /// Counts a finding; `describe` is called for the first of its kind at its place.
    pub(crate) fn add(&mut self, source: &Source, at: Place, kind: Kind, describe: impl FnOnce() -> String) {
        if let Some(&index) = self.known.get(&(source.id, at, kind)) {
            self.found[index].times += 1;
            return;
        }
        let (line, text) = source.line(at);
        self.known.insert((source.id, at, kind), self.found.len());
        self.found.push(Finding {
            kind,
            shader: source.name.clone(),
            line,
            text,
            what: describe(),
            times: 1,
        });
    }

    /// All findings so far, which are forgotten.
    pub(crate) fn take(&mut self) -> Vec<Finding> {
        self.known.clear();
        std::mem::take(&mut self.found)
    }
}

/// A shader's text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its name.
    pub(crate) name: String,
    /// The text.
    pub(crate) text: String,
    /// Tells sources apart.
    pub(crate) id: u64,
}

impl Source {
    /// The line of a place and its text.
    fn line(&self, at: Place) -> (u32, String) {
        let Some(start) = (at as usize).checked_sub(1).filter(|&start| start <= self.text.len()) else {
            return (0, String::new());
        };
        let before = self.text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count();
        let text = self.text.lines().nth(before).unwrap_or("").trim().to_owned();
        (before as u32 + 1, text)
    }
}
