//! A compiled stretch.

mod replay;

use crate::guard::{caught, fault};
use crate::hardware::Hardware;
use crate::held::{Held, Wants};
use crate::launch::{Counts, Launch};
use crate::pack::pad_rows;
use crate::program_plan::{ProgramPlan, Role, seen_words, stride};
use crate::recording::{Recorder, Recording};
use crate::rows::encode;
use crate::sequence::{Columns, Manners, Sequence};
use crate::staging::Uploader;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::gpu::{Reach, all_apart, seen_bits};
use halfbyte_backend::{
    Answer, Caps, Draw, Fault, Fut, Input, Ledger, Output, Place, Program, Rows, Step, Stretch, Ticket,
};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

/// A compiled stretch: its buffers, and lists of launches for each manner of submission, made when they are
/// first needed.
pub(crate) struct CubeProgram<R: Runtime> {
    client: &'static ComputeClient<R>,
    hardware: Hardware,
    stretch: Stretch,
    held: Vec<Held>,
    plan: ProgramPlan,
    buffers: BTreeMap<Role, Handle>,
    caps: Caps,
    reach: Reach,
    bodies: BTreeMap<Manners, Rc<Vec<Launch>>>,
    heads: BTreeMap<Columns, Rc<Vec<Launch>>>,
    choices: BTreeMap<Choice, Rc<Vec<Launch>>>,
    /// Before the buffers that they use. None where recording failed once.
    recordings: BTreeMap<(Counts, Choice), Option<Box<dyn Recording>>>,
    /// How many tokens the last output chose that chose some.
    chosen: usize,
    dispatches: u64,
    submissions: u64,
    recorder: Option<Rc<dyn Recorder>>,
    /// Whether the last submission was replayed.
    replayed: bool,
    ledger: Rc<Ledger>,
    tickets: Vec<u64>,
}

/// What follows the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Choice {
    /// They are the answer.
    None,
    Greedy,
    Draw,
}

impl Choice {
    /// That of an output that needs logits.
    fn of(output: &Output<'_>) -> Option<Self> {
        match output {
            Output::Logits(_) => Some(Choice::None),
            Output::Greedy(_) => Some(Choice::Greedy),
            Output::Sample { .. } => Some(Choice::Draw),
            Output::Nothing | Output::Hidden => None,
        }
    }
}

/// What comes back, and how it lies.
enum Reply {
    Tokens,
    /// Rows of a register each, of these widths.
    Floats {
        rows: usize,
        widths: Vec<usize>,
        hidden: bool,
    },
}

impl<R: Runtime> Drop for CubeProgram<R> {
    fn drop(&mut self) {
        // Nothing of the device's runs over buffers that are about to go.
        let _ = self.finish_replays();
        self.recordings.clear();
        self.tickets.iter().for_each(|&ticket| self.ledger.strike(ticket));
    }
}

impl<R: Runtime> CubeProgram<R> {
    /// Compiles `stretch` over `held`, whose buffers by `plan` are there.
    #[allow(clippy::too_many_arguments, reason = "a program is made of these, in one place")]
    pub(crate) fn new(
        client: &'static ComputeClient<R>,
        hardware: Hardware,
        stretch: Stretch,
        held: Vec<Held>,
        plan: ProgramPlan,
        buffers: BTreeMap<Role, Handle>,
        caps: Caps,
        (ledger, tickets): (Rc<Ledger>, Vec<u64>),
        recorder: Option<Rc<dyn Recorder>>,
    ) -> Result<Self, Fault> {
        let reach = Reach::new(&stretch)?;
        let mut program = Self {
            client,
            hardware,
            stretch,
            held,
            plan,
            buffers,
            caps,
            reach,
            bodies: BTreeMap::new(),
            heads: BTreeMap::new(),
            choices: BTreeMap::new(),
            recordings: BTreeMap::new(),
            chosen: 0,
            dispatches: 0,
            submissions: 0,
            recorder,
            replayed: false,
            ledger,
            tickets,
        };
        // What cannot be launched is to be known before anything is submitted.
        let fresh = program.plan.fresh;
        program.body(Manners { columns: Columns::One, fresh })?;
        if caps.rows > 1 {
            program.body(Manners { columns: Columns::for_rows(caps.rows), fresh: false })?;
        }
        if program.plan.vocabulary > 0 {
            program.head(Columns::One)?;
        }
        Ok(program)
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            hardware: &self.hardware,
            wants: Wants { stretch: &self.stretch, held: &self.held },
            plan: &self.plan,
            buffers: &self.buffers,
            caps: self.caps,
        }
    }

    fn body(&mut self, manners: Manners) -> Result<Rc<Vec<Launch>>, Fault> {
        if let Some(body) = self.bodies.get(&manners) {
            return Ok(Rc::clone(body));
        }
        let body = Rc::new(self.sequence().body(manners)?);
        self.bodies.insert(manners, Rc::clone(&body));
        Ok(body)
    }

    fn head(&mut self, columns: Columns) -> Result<Rc<Vec<Launch>>, Fault> {
        if let Some(head) = self.heads.get(&columns) {
            return Ok(Rc::clone(head));
        }
        let head = Rc::new(self.sequence().head(columns)?);
        self.heads.insert(columns, Rc::clone(&head));
        Ok(head)
    }

    fn choice(&mut self, choice: Choice) -> Result<Rc<Vec<Launch>>, Fault> {
        if let Some(launches) = self.choices.get(&choice) {
            return Ok(Rc::clone(launches));
        }
        let launches = Rc::new(match choice {
            Choice::None => Vec::new(),
            Choice::Greedy => vec![self.sequence().argmax()?],
            Choice::Draw => vec![self.sequence().sample()?],
        });
        self.choices.insert(choice, Rc::clone(&launches));
        Ok(launches)
    }

    /// Replaces what sequences have seen where a draw says so, and counts the launches.
    fn write_seen(&self, places: &[Place], rows: &[u32], draws: &[Draw<'_>]) -> Result<u64, Fault> {
        let words = seen_words(self.plan.vocabulary);
        let mut launches = 0;
        for (&row, draw) in rows.iter().zip(draws) {
            let Some(seen) = draw.seen else { continue };
            let bits = seen_bits(seen, words);
            let sequence = places[row as usize].sequence as usize;
            let to = self.buffer(Role::Seen)?;
            launches +=
                self.uploader().write_rows(to, bytemuck::cast_slice(&bits), words / 4, sequence, 1)?;
        }
        Ok(launches)
    }

    /// What the next [`Input::Chosen`] may take.
    fn remember_chosen(&mut self, output: &Output<'_>) {
        if let Output::Greedy(outputs) | Output::Sample { rows: outputs, .. } = output {
            self.chosen = outputs.len();
        }
    }

    fn buffer(&self, role: Role) -> Result<&Handle, Fault> {
        self.buffers.get(&role).ok_or_else(|| Fault::Internal(format!("a program without {role:?}")))
    }

    fn uploader(&self) -> Uploader<'_, R> {
        Uploader { device: &self.hardware.device, client: self.client }
    }

    fn check(&self, rows: &Rows<'_>) -> Result<(), Fault> {
        let mut width = 0;
        for &reg in &self.stretch.inputs {
            width += self.stretch.width(reg)?;
        }
        rows.check(&self.caps, width)?;
        self.reach.check(rows)?;
        let embeds = self.stretch.steps.iter().any(|step| matches!(step, Step::Embed(_)));
        let count = rows.places.len();
        match rows.input {
            Input::Tokens(_) | Input::Chosen if !embeds => {
                return Err(Fault::Invalid("tokens for a stretch without an embedding".into()));
            }
            Input::Chosen if count > self.chosen => {
                return Err(Fault::Invalid(format!("{count} rows for {} chosen tokens", self.chosen)));
            }
            _ => {}
        }
        match rows.output {
            output if output.wants_head() && self.plan.vocabulary == 0 => {
                Err(Fault::Invalid("logits of a stretch without a head".into()))
            }
            Output::Sample { .. } if self.plan.drawn == 0 => {
                Err(Fault::Invalid("a token is drawn where tokens go in and logits come out".into()))
            }
            Output::Sample { rows: wanted, .. }
                if wanted
                    .iter()
                    .any(|&row| rows.places[row as usize].sequence as usize >= self.plan.drawn) =>
            {
                Err(Fault::Invalid(format!("draws of more than {} sequences", self.plan.drawn)))
            }
            Output::Hidden if self.stretch.outputs.is_empty() => {
                Err(Fault::Invalid("hidden states of a stretch that gives none".into()))
            }
            _ => Ok(()),
        }
    }

    /// Fills the input registers, padded rows, and counts the launches.
    fn write_hidden(&self, values: &[f32], rows: usize) -> Result<u64, Fault> {
        let mut from = values;
        let mut launches = 0;
        for &reg in &self.stretch.inputs {
            let width = self.stretch.width(reg)?;
            let (now, later) = from.split_at(rows * width);
            from = later;
            let padded = pad_rows(now, width);
            launches +=
                self.uploader().write(self.buffer(Role::Register(reg.0))?, bytemuck::cast_slice(&padded))?;
        }
        Ok(launches)
    }

    /// The first `bytes` of a buffer, to be read.
    fn beginning(&self, role: Role, bytes: usize) -> Result<Handle, Fault> {
        let handle = self.buffer(role)?.clone();
        let beyond = handle.size_in_used().saturating_sub(bytes as u64);
        Ok(handle.offset_end(beyond))
    }

    /// What is read back for `output`, and how it lies.
    fn reply(&self, output: &Output<'_>, rows: usize) -> Result<Option<(Reply, Vec<Handle>)>, Fault> {
        Ok(match *output {
            Output::Nothing | Output::Greedy([]) | Output::Logits([]) | Output::Sample { rows: [], .. } => {
                None
            }
            Output::Greedy(outputs) | Output::Sample { rows: outputs, .. } => {
                Some((Reply::Tokens, vec![self.beginning(Role::Chosen, outputs.len() * 4)?]))
            }
            Output::Logits(outputs) => {
                let (rows, width) = (outputs.len(), self.plan.vocabulary);
                let handle = self.beginning(Role::Logits, rows * stride(width) * 4)?;
                Some((Reply::Floats { rows, widths: vec![width], hidden: false }, vec![handle]))
            }
            Output::Hidden => {
                let (mut widths, mut handles) = (Vec::new(), Vec::new());
                for &reg in &self.stretch.outputs {
                    let width = self.stretch.width(reg)?;
                    widths.push(width);
                    handles.push(self.beginning(Role::Register(reg.0), rows * stride(width) * 4)?);
                }
                Some((Reply::Floats { rows, widths, hidden: true }, handles))
            }
        })
    }

    fn launch(&mut self, launches: &[Launch], places: &Handle, counts: Counts) -> Result<(), Fault> {
        for launch in launches {
            launch.submit(&self.hardware.device, self.client, places, counts)?;
        }
        self.dispatches += launches.len() as u64;
        Ok(())
    }
}

impl Reply {
    fn answer(&self, registers: &[impl Deref<Target = [u8]>]) -> Answer {
        match self {
            Reply::Tokens => {
                let bytes = registers.first().map_or(&[][..], |bytes| &**bytes);
                Answer::Tokens(
                    bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect(),
                )
            }
            Reply::Floats { rows, widths, hidden } => {
                let mut out = Vec::with_capacity(rows * widths.iter().sum::<usize>());
                for (bytes, width) in registers.iter().zip(widths) {
                    for row in bytes.chunks_exact(stride(*width) * 4).take(*rows) {
                        let (values, _) = row[..width * 4].as_chunks::<4>();
                        out.extend(values.iter().map(|&value| f32::from_le_bytes(value)));
                    }
                }
                if *hidden { Answer::Hidden(out) } else { Answer::Logits(out) }
            }
        }
    }
}

impl<R: Runtime> Program for CubeProgram<R> {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        self.check(rows)?;
        let device = self.hardware.device.clone();
        let count = rows.places.len();
        let columns = Columns::for_rows(count);
        let few = columns != Columns::Many;
        let fresh = few && self.plan.fresh && all_apart(rows.places);
        let (words, counts) = encode(rows, if few { 1 } else { self.plan.tile_rows });

        if fresh && let Some(ticket) = self.replay(rows, &words, counts)? {
            return Ok(ticket);
        }
        self.finish_replays()?;
        let body = self.body(Manners { columns, fresh })?;
        let places = self.uploader().stage(bytemuck::cast_slice(&words))?;
        if let Input::Hidden(values) = rows.input {
            self.dispatches += self.write_hidden(values, count)?;
        }
        self.launch(&body, &places, counts)?;
        if let Some(choice) = Choice::of(&rows.output).filter(|_| counts.outputs > 0) {
            if let Output::Sample { rows: wanted, draws } = rows.output {
                self.dispatches += self.write_seen(rows.places, wanted, draws)?;
            }
            let head = self.head(Columns::for_rows(counts.outputs as usize))?;
            self.launch(&head, &places, counts)?;
            let choice = self.choice(choice)?;
            self.launch(&choice, &places, counts)?;
        }
        self.remember_chosen(&rows.output);
        self.submissions += 1;

        let client = self.client;
        let Some((reply, handles)) = self.reply(&rows.output, count)? else {
            caught(&device, || client.flush())?.map_err(|error| fault(&device, "flush", &error))?;
            let empty = match rows.output {
                Output::Greedy(_) | Output::Sample { .. } => Answer::Tokens(Vec::new()),
                Output::Logits(_) => Answer::Logits(Vec::new()),
                Output::Nothing | Output::Hidden => Answer::Nothing,
            };
            return Ok(Box::pin(async { Ok(empty) }));
        };
        let read = caught(&device, || client.read_async(handles))?;
        Ok(Box::pin(async move {
            let registers = read.await.map_err(|error| fault(&device, "reading an answer", &error))?;
            Ok(reply.answer(&registers))
        }))
    }

    fn samples(&self) -> bool {
        self.plan.drawn > 0
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        Box::pin(async move {
            self.finish_replays()?;
            let device = &self.hardware.device;
            let sync = caught(device, || self.client.sync())?;
            sync.await.map_err(|error| fault(device, "sync", &error))
        })
    }

    fn counts(&self) -> (u64, u64) {
        (self.dispatches, self.submissions)
    }
}
