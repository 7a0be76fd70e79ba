//! Steps to launches: the static list that every submission replays.

mod attend;
mod experts;

use crate::hardware::Hardware;
use crate::held::{NormUse, Wants};
use crate::kernels::embed::EmbedVariant;
use crate::kernels::epilogue::Residual;
use crate::kernels::pre::PreVariant;
use crate::kernels::variant::{Merge, Norming};
use crate::launch::{Arg, Element, Extent, Kernel, Launch};
use crate::product::{Product, Splits};
use crate::program_plan::{MAX_FEW, ProgramPlan, Role, needs_launch, seen_words, stride};
use crate::weight::unsupported;
use cubecl::server::Handle;
use halfbyte_backend::gpu::parts_of;
use halfbyte_backend::{Caps, Embed, EmitKind, Fault, Head, LinearStep, Pre, Reg, Step, WantId};
use std::collections::BTreeMap;

/// How many rows a product is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Columns {
    One,
    /// Up to eight: each weight is decoded for four of them at a time.
    Few,
    /// Any number, in tiles.
    Many,
}

/// How the steps before the head run. Every submission has one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manners {
    pub columns: Columns,
    /// Whether every row is the only one of its sequence and all attention is cached.
    pub fresh: bool,
}

impl Columns {
    /// The cheapest kind for `rows` rows.
    pub(crate) fn for_rows(rows: usize) -> Self {
        match rows {
            0 | 1 => Columns::One,
            2..=MAX_FEW => Columns::Few,
            _ => Columns::Many,
        }
    }
}

/// An array of f32.
fn floats(handle: &Handle) -> Arg {
    Arg::Array(handle.clone(), Element::F32)
}

/// An array of four f32 at a time.
fn quads(handle: &Handle) -> Arg {
    Arg::Array(handle.clone(), Element::QuadF32)
}

/// Builds launches over a program's buffers.
pub(crate) struct Sequence<'a> {
    pub hardware: &'a Hardware,
    pub wants: Wants<'a>,
    pub plan: &'a ProgramPlan,
    pub buffers: &'a BTreeMap<Role, Handle>,
    pub caps: Caps,
}

impl Sequence<'_> {
    /// The launches of all steps but the head.
    pub(crate) fn body(&self, manners: Manners) -> Result<Vec<Launch>, Fault> {
        let mut out = Vec::new();
        for (index, step) in self.wants.stretch.steps.iter().enumerate() {
            match step {
                Step::Embed(step) => out.push(self.embed(step)?),
                Step::Linear(step) => self.linear(step, manners, &mut out)?,
                Step::Attend(step) => self.attend(index, step, manners, &mut out)?,
                Step::Moe(step) => self.experts(step, manners.columns, &mut out)?,
                Step::Head(_) => {}
            }
        }
        self.check(out)
    }

    /// The launches of the head, for as many outputs.
    pub(crate) fn head(&self, columns: Columns) -> Result<Vec<Launch>, Fault> {
        let mut out = Vec::new();
        for step in &self.wants.stretch.steps {
            if let Step::Head(step) = step {
                self.head_step(step, columns, &mut out)?;
            }
        }
        self.check(out)
    }

    /// The greedy choice from the logits.
    pub(crate) fn argmax(&self) -> Result<Launch, Fault> {
        let args = vec![
            floats(self.buffer(Role::Logits)?),
            Arg::Array(self.buffer(Role::Chosen)?.clone(), Element::U32),
            Arg::U32(self.plan.vocabulary as u32),
            Arg::U32(stride(self.plan.vocabulary) as u32),
        ];
        let kernel = Kernel::Argmax(self.hardware.wide_units);
        Ok(Launch { kernel, args, grid: [Extent::Outputs(1), Extent::Fixed(1), Extent::Fixed(1)] })
    }

    /// The draw from the logits.
    pub(crate) fn sample(&self) -> Result<Launch, Fault> {
        let words = |role| Ok(Arg::Array(self.buffer(role)?.clone(), Element::U32));
        let args = vec![
            floats(self.buffer(Role::Logits)?),
            Arg::Places,
            words(Role::Chosen)?,
            words(Role::Seen)?,
            words(Role::Candidates)?,
            Arg::U32(self.plan.vocabulary as u32),
            Arg::U32(stride(self.plan.vocabulary) as u32),
            Arg::U32(seen_words(self.plan.vocabulary) as u32),
        ];
        let kernel = Kernel::Sample(self.hardware.draw_units);
        Ok(Launch { kernel, args, grid: [Extent::Outputs(1), Extent::Fixed(1), Extent::Fixed(1)] })
    }

    /// Refuses what has more cubes than the device can number.
    fn check(&self, launches: Vec<Launch>) -> Result<Vec<Launch>, Fault> {
        for launch in &launches {
            for (extent, most) in launch.grid.iter().zip(self.hardware.cubes) {
                if let Extent::Fixed(cubes) = extent
                    && *cubes > most
                {
                    let what = format!("{cubes} cubes of {:?}, of at most {most}", launch.kernel);
                    return Err(unsupported(&self.hardware.device, what));
                }
            }
        }
        Ok(launches)
    }

    pub(crate) fn buffer(&self, role: Role) -> Result<&Handle, Fault> {
        self.buffers.get(&role).ok_or_else(|| Fault::Internal(format!("a program without {role:?}")))
    }

    fn register(&self, reg: Reg) -> Result<&Handle, Fault> {
        self.buffer(Role::Register(reg.0))
    }

    /// Elements of a row of `reg`.
    fn stride(&self, reg: Reg) -> Result<usize, Fault> {
        Ok(stride(self.wants.stretch.width(reg)?))
    }

    fn norm(&self, norm: Option<&halfbyte_backend::Norm>) -> Result<Option<NormUse>, Fault> {
        norm.map(|norm| self.wants.norm(norm)).transpose()
    }

    fn embed(&self, step: &Embed) -> Result<Launch, Fault> {
        let out = self.register(step.out)?;
        let (table, table_buffers) = self.wants.linear(step.table)?;
        let linear = |id: WantId| self.wants.linear(id);
        let positions = step.positions.map(|(id, _)| linear(id)).transpose()?;
        let types = step.types.map(linear).transpose()?;
        let norm = self.norm(step.norm.as_ref())?;
        let codes =
            |buffers: &crate::held::WeightBuffers| Arg::Array(buffers.codes.clone(), Element::QuadU32);
        let kernel = Kernel::Embed(EmbedVariant {
            table: table.elements,
            positions: positions.map(|(layout, _)| layout.elements),
            types: types.map(|(layout, _)| layout.elements),
            norm: norm.as_ref().map_or(Norming::None, |norm| norm.norming),
            team: self.hardware.team,
        });
        // A kernel binds every argument, also those that this variant does not read.
        let args = vec![
            codes(table_buffers),
            codes(positions.map_or(table_buffers, |(_, buffers)| buffers)),
            codes(types.map_or(table_buffers, |(_, buffers)| buffers)),
            quads(norm.as_ref().map_or(&table_buffers.state, |norm| &norm.weight)),
            Arg::Array(self.buffer(Role::Chosen)?.clone(), Element::U32),
            Arg::Places,
            quads(out),
            Arg::U32(self.wants.stretch.width(step.out)? as u32),
            Arg::U32(step.positions.map_or(0, |(_, first)| first)),
            Arg::F32(step.scale),
            Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.eps)),
            Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.offset)),
        ];
        Ok(Launch { kernel, args, grid: [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)] })
    }

    /// The input of a product after as much of `pre` as has a launch of its own, and the norm that is left.
    fn input(
        &self,
        reg: Reg,
        step: &Pre,
        columns: Columns,
        out: &mut Vec<Launch>,
    ) -> Result<(Handle, Option<NormUse>), Fault> {
        if needs_launch(step) || (columns == Columns::Many && step.norm.is_some()) {
            return Ok((self.apart(reg, step, out)?, None));
        }
        Ok((self.register(reg)?.clone(), self.norm(step.norm.as_ref())?))
    }

    /// The input of a product after all of `step`, in a launch of its own.
    fn apart(&self, reg: Reg, step: &Pre, out: &mut Vec<Launch>) -> Result<Handle, Fault> {
        let width = self.wants.stretch.width(reg)?;
        let input = self.register(reg)?;
        let normed = self.buffer(Role::Normed(width))?;
        let (post, norm) = (self.norm(step.post.as_ref())?, self.norm(step.norm.as_ref())?);
        let of = |norm: &Option<NormUse>| norm.as_ref().map_or(Norming::None, |norm| norm.norming);
        let weight = |norm: &Option<NormUse>| quads(norm.as_ref().map_or(input, |norm| &norm.weight));
        let eps = |norm: &Option<NormUse>| Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.eps));
        let offset = |norm: &Option<NormUse>| Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.offset));
        let kernel = Kernel::Pre(PreVariant {
            post: of(&post),
            norm: of(&norm),
            residual: step.residual.is_some(),
            emit: step.emit.map(|emit| emit.kind == EmitKind::Normed),
            team: self.hardware.team,
        });
        let residual = step.residual.map(|reg| self.register(reg)).transpose()?;
        let kept = step.emit.map(|emit| self.register(emit.to)).transpose()?;
        let args = vec![
            quads(input),
            quads(residual.unwrap_or(input)),
            weight(&post),
            weight(&norm),
            quads(normed),
            quads(kept.unwrap_or(normed)),
            Arg::U32(width as u32),
            eps(&post),
            offset(&post),
            eps(&norm),
            offset(&norm),
        ];
        out.push(Launch { kernel, args, grid: [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)] });
        Ok(normed.clone())
    }

    /// What is added to a product that goes to `out`.
    fn residual(&self, residual: Option<Reg>, out: Reg) -> Result<(Residual, Option<Handle>), Fault> {
        Ok(match residual {
            None => (Residual::None, None),
            Some(reg) if reg == out => (Residual::Accumulate, None),
            Some(reg) => (Residual::Read, Some(self.register(reg)?.clone())),
        })
    }

    fn product(&self, product: &Product<'_>, columns: Columns, out: &mut Vec<Launch>) {
        out.push(product.launch(self.hardware, columns));
    }

    fn linear(&self, step: &LinearStep, manners: Manners, out: &mut Vec<Launch>) -> Result<(), Fault> {
        let (input, norm) = self.input(step.input, &step.pre, manners.columns, out)?;
        let weight = self.wants.linear(step.weight)?;
        let mut product =
            Product::new(weight, input, self.register(step.out)?.clone(), self.stride(step.out)?);
        product.norm = norm;
        product.act = step.act;
        product.gated = step.gated;
        product.residual = self.residual(step.residual, step.out)?;
        product.at = step.at;
        if manners.columns != Columns::Many
            && let Some((attend, sizes)) = parts_of(&self.plan.attends, self.wants.stretch, step.input)
        {
            let merge = Merge { heads: attend.heads, head_dim: attend.head_dim, splits: sizes.splits };
            product.input = self.buffer(Role::Parts(step.input.0))?.clone();
            let statistics = self.buffer(Role::Statistics(step.input.0))?.clone();
            product.splits = Some(Splits { merge, statistics });
        }
        self.product(&product, manners.columns, out);
        Ok(())
    }

    fn head_step(&self, step: &Head, columns: Columns, out: &mut Vec<Launch>) -> Result<(), Fault> {
        let (input, norm) = self.input(step.input, &step.pre, columns, out)?;
        let logits = self.buffer(Role::Logits)?.clone();
        let weight = self.wants.linear(step.weight)?;
        let mut product = Product::new(weight, input, logits, stride(self.plan.vocabulary));
        product.norm = norm;
        product.scale = step.scale;
        product.cap = step.softcap.unwrap_or(0.0);
        product.select = true;
        self.product(&product, columns, out);
        Ok(())
    }
}
