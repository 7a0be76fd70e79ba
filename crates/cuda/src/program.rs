//! Compiled steps: which kernel with which buffers.

use crate::guard::{caught, fault};
use crate::kernels::GROUP;
use crate::kernels::epilogue::{self, NO_BIAS, Residual};
use crate::kernels::norm_linear::norm_linear;
use crate::kernels::variant::{Norming, Variant};
use crate::pack::pad_rows;
use crate::staging::Uploader;
use crate::weight::{WeightLayout, unsupported};
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{
    Answer, Caps, Fault, Fut, Input, Kind, Ledger, LinearStep, Output, Program, Reg, Rows, Step, Stretch,
    Ticket,
};
use std::rc::Rc;

/// A step that this backend runs: the linear step itself, if nothing about it is unsupported.
pub(crate) fn linear_of<'a>(
    device: &str,
    stretch: &Stretch,
    step: &'a Step,
) -> Result<&'a LinearStep, Fault> {
    let refuse = |what: &str| Err(unsupported(device, what));
    let step = match step {
        Step::Linear(step) => step,
        Step::Embed(_) => return refuse("embed"),
        Step::Attend(_) => return refuse("attend"),
        Step::Moe(_) => return refuse("moe"),
        Step::Head(_) => return refuse("head"),
    };
    if step.pre.residual.is_some() {
        return refuse("a linear step with a residual before it");
    }
    if step.pre.post.is_some() {
        return refuse("a linear step with a post-norm");
    }
    if step.pre.emit.is_some() {
        return refuse("a linear step that emits");
    }
    let Kind::Linear(shape) = &stretch.want(step.weight)?.kind else {
        return Err(Fault::Internal(format!("{} is no matrix", stretch.want(step.weight)?.name)));
    };
    WeightLayout::of(device, shape)?;
    Ok(step)
}

/// The buffers of a linear layer on the device; see [`WeightLayout`] for what is in them.
#[derive(Debug, Clone)]
pub(crate) struct WeightBuffers {
    pub codes: Handle,
    pub scales: Handle,
    pub state: Handle,
}

/// One launch of `norm_linear`, less what a submission says.
pub(crate) struct Launch {
    pub name: String,
    pub weight: WeightBuffers,
    pub layout: WeightLayout,
    pub norm: Option<(Handle, Norming)>,
    pub step: LinearStep,
    pub planes: Option<usize>,
}

/// A compiled stretch.
pub(crate) struct CubeProgram<R: Runtime> {
    pub device: String,
    pub client: &'static ComputeClient<R>,
    pub launches: Vec<Launch>,
    /// `[caps.rows, width]` each, rows padded to whole groups with zeros.
    pub registers: Vec<Handle>,
    pub widths: Vec<usize>,
    pub inputs: Vec<Reg>,
    pub outputs: Vec<Reg>,
    pub caps: Caps,
    pub ledger: Rc<Ledger>,
    pub tickets: Vec<u64>,
    pub dispatches: u64,
    pub submissions: u64,
}

impl<R: Runtime> Drop for CubeProgram<R> {
    fn drop(&mut self) {
        self.tickets.iter().for_each(|&ticket| self.ledger.strike(ticket));
    }
}

impl Launch {
    /// The kernel's variant for `batch` rows. Single rows take four rows of the matrix a team, so that one
    /// load of `x` serves four; more rows take two, and four rows of `x` for each decoded weight.
    fn variant(&self, batch: usize) -> Variant {
        let (tile_rows, tile_batch) = if batch == 1 { (4, 1) } else { (2, 4) };
        Variant {
            elements: self.layout.elements,
            norm: self.norm.as_ref().map_or(Norming::None, |(_, norming)| *norming),
            planes: self.planes.is_some(),
            lanes: self.planes.unwrap_or(32),
            teams: 256 / self.planes.unwrap_or(32),
            tile_rows,
            tile_batch,
        }
    }

    fn submit<R: Runtime>(
        &self,
        client: &ComputeClient<R>,
        program: &CubeProgram<R>,
        batch: usize,
    ) -> Result<(), Fault> {
        let register = |reg: Reg| {
            let handle = program.registers.get(usize::from(reg.0)).cloned();
            handle.ok_or_else(|| Fault::Internal(format!("{}: no register {}", self.name, reg.0)))
        };
        let variant = self.variant(batch);
        let added = match self.step.residual {
            None => Residual::None,
            Some(reg) if reg == self.step.out => Residual::Accumulate,
            Some(_) => Residual::Read,
        };
        let layout = &self.layout;
        let input = register(self.step.input)?;
        let out = register(self.step.out)?;
        let stride = program.widths[usize::from(self.step.out.0)].next_multiple_of(GROUP);
        let padded = layout.cols.next_multiple_of(GROUP);
        // A kernel binds every argument, also those that this variant does not read.
        let (norm, norm_len) = match &self.norm {
            None => (unread(&self.weight), 1),
            Some((handle, norming)) => (handle.clone(), padded / 4 * if norming.has_bias() { 2 } else { 1 }),
        };
        let (residual, residual_len) = match (added, self.step.residual) {
            (Residual::Read, Some(reg)) => (register(reg)?, batch * stride),
            _ => (unread(&self.weight), 1),
        };
        let cubes_x = u32::try_from(layout.rows.div_ceil(variant.cube_rows())).unwrap_or(u32::MAX);
        let cubes_y = u32::try_from(batch.div_ceil(variant.tile_batch)).unwrap_or(u32::MAX);
        let limit = client.properties().hardware.max_cube_count;
        if cubes_x > limit.0 || cubes_y > limit.1 {
            return Err(unsupported(
                &program.device,
                format!("{}: {cubes_x} x {cubes_y} cubes, of at most {} x {}", self.name, limit.0, limit.1),
            ));
        }
        let (eps, norm_offset) = self.step.pre.norm.map_or((0.0, 0.0), |norm| (norm.eps, norm.offset));
        let number = |value: usize| value as u32; // WeightLayout::of has bounded them all
        caught(&program.device, || {
            // SAFETY: the lengths are those that the buffers were reserved with, and the kernel clamps or
            // guards every index by `rows`, `batch`, `cols` and `last_block`.
            unsafe {
                norm_linear::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(cubes_x, cubes_y, 1),
                    CubeDim::new_1d(number(variant.units())),
                    ArrayArg::from_raw_parts(self.weight.codes.clone(), layout.rows * layout.row_quads()),
                    ArrayArg::from_raw_parts(self.weight.scales.clone(), layout.scales_bytes() as usize / 4),
                    ArrayArg::from_raw_parts(self.weight.state.clone(), layout.state_bytes() as usize / 4),
                    ArrayArg::from_raw_parts(norm, norm_len),
                    ArrayArg::from_raw_parts(input, batch * padded / 4),
                    ArrayArg::from_raw_parts(residual, residual_len),
                    ArrayArg::from_raw_parts(out, batch * stride),
                    number(layout.rows),
                    number(layout.cols),
                    number(batch),
                    number(stride),
                    number(self.step.at),
                    layout.blocksize.trailing_zeros(),
                    number(layout.blocks().saturating_sub(1)),
                    if layout.bias { number(layout.bias_at) } else { NO_BIAS },
                    epilogue::number(self.step.act),
                    u32::from(self.step.gated),
                    added as u32,
                    eps,
                    norm_offset,
                    variant,
                );
            }
        })
    }
}

/// A buffer that is bound where a variant reads none.
fn unread(weight: &WeightBuffers) -> Handle {
    weight.state.clone()
}

impl<R: Runtime> Program for CubeProgram<R> {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let width = |reg: &Reg| self.widths[usize::from(reg.0)];
        rows.check(&self.caps, self.inputs.iter().map(width).sum())?;
        let batch = rows.places.len();
        let Input::Hidden(values) = rows.input else {
            return Err(unsupported(&self.device, "token input"));
        };
        if !matches!(rows.output, Output::Hidden | Output::Nothing) {
            return Err(unsupported(&self.device, "logits"));
        }
        let uploader = Uploader { device: &self.device, client: self.client };
        let mut rest = values;
        let mut dispatches = self.launches.len() as u64;
        for reg in &self.inputs {
            let (values, after) = rest.split_at(batch * width(reg));
            rest = after;
            let padded = pad_rows(values, width(reg));
            dispatches +=
                uploader.write(&self.registers[usize::from(reg.0)], bytemuck::cast_slice(&padded))?;
        }
        for launch in &self.launches {
            launch.submit(self.client, self, batch)?;
        }
        self.dispatches += dispatches;
        self.submissions += 1;
        if rows.output == Output::Nothing {
            let device = self.device.clone();
            caught(&device, || self.client.flush())?.map_err(|error| fault(&device, "flush", &error))?;
            return Ok(Box::pin(async { Ok(Answer::Nothing) }));
        }
        let widths: Vec<usize> = self.outputs.iter().map(width).collect();
        let handles = self.outputs.iter().map(|reg| {
            let handle = self.registers[usize::from(reg.0)].clone();
            let used = (batch * width(reg).next_multiple_of(GROUP) * 4) as u64;
            let beyond = handle.size_in_used() - used;
            handle.offset_end(beyond)
        });
        let handles: Vec<Handle> = handles.collect();
        let client = self.client;
        let read = caught(&self.device, || client.read_async(handles))?;
        let device = self.device.clone();
        Ok(Box::pin(async move {
            let registers = read.await.map_err(|error| fault(&device, "reading hidden states", &error))?;
            let mut hidden = Vec::with_capacity(batch * widths.iter().sum::<usize>());
            for (bytes, width) in registers.iter().zip(widths) {
                for row in bytes.chunks(width.next_multiple_of(GROUP) * 4).take(batch) {
                    let (values, _) = row[..width * 4].as_chunks::<4>();
                    hidden.extend(values.iter().map(|&value| f32::from_le_bytes(value)));
                }
            }
            Ok(Answer::Hidden(hidden))
        }))
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        Box::pin(async move {
            let sync = caught(&self.device, || self.client.sync())?;
            sync.await.map_err(|error| fault(&self.device, "sync", &error))
        })
    }

    fn counts(&self) -> (u64, u64) {
        (self.dispatches, self.submissions)
    }
}
