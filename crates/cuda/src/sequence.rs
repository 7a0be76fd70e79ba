//! Steps to launches: the static list that every submission replays.

use crate::attend_plan::LIMITS;
use crate::hardware::Hardware;
use crate::held::{NormUse, Wants};
use crate::kernels::attend::AttendVariant;
use crate::kernels::embed::EmbedVariant;
use crate::kernels::epilogue::Residual;
use crate::kernels::heads::Rotary;
use crate::kernels::kv_store::StoreVariant;
use crate::kernels::pre::PreVariant;
use crate::kernels::variant::{Merge, Norming, Sharing};
use crate::launch::{Arg, Element, Extent, Kernel, Launch};
use crate::product::{Product, Share, Splits};
use crate::program_plan::{MAX_FEW, ProgramPlan, Role, needs_launch, seen_words, stride};
use crate::weight::unsupported;
use cubecl::server::Handle;
use halfbyte_backend::gpu::{KeyTile, SPLIT_KEYS, parts_of};
use halfbyte_backend::{
    Attend, Caps, Embed, EmitKind, Fault, Head, LinearStep, Moe, Pairing, Pre, Reg, Step, WantId,
};
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

    fn attend(
        &self,
        index: usize,
        step: &Attend,
        manners: Manners,
        out: &mut Vec<Launch>,
    ) -> Result<(), Fault> {
        let plan = self.plan.attends.get(&index);
        let plan = plan.ok_or_else(|| Fault::Internal(format!("step {index} has no plan")))?;
        let (keys_buffer, values_buffer, slots, ring) = match step.cache {
            Some(id) => {
                let (keys, values, shape) = self.wants.kv(id)?;
                (keys, values, shape.slots(), shape.ring.is_some())
            }
            None => (self.buffer(Role::Keys)?, self.buffer(Role::Values)?, self.caps.rows, false),
        };
        let few = manners.columns != Columns::Many;
        let parts = few && plan.parts;
        let qkv = self.register(step.qkv)?;
        let rope = step.rope.map(|rope| self.wants.rope(rope.table)).transpose()?;
        let rotary = step
            .rope
            .zip(rope)
            .map(|(rope, (_, pairs))| Rotary { pairs, adjacent: rope.pairing == Pairing::Adjacent });
        let (q_norm, k_norm) = (self.norm(step.q_norm.as_ref())?, self.norm(step.k_norm.as_ref())?);
        let norming = |norm: &Option<NormUse>| norm.as_ref().map_or(Norming::None, |norm| norm.norming);
        let weight = |norm: &Option<NormUse>| floats(norm.as_ref().map_or(qkv, |norm| &norm.weight));
        let eps = |norm: &Option<NormUse>| Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.eps));
        let offset = |norm: &Option<NormUse>| Arg::F32(norm.as_ref().map_or(0.0, |norm| norm.offset));
        let words = |handle: &Handle| Arg::Array(handle.clone(), Element::U32);
        let number = |value: usize| Arg::U32(value as u32);
        let qkv_stride = number(self.stride(step.qkv)?);
        let key_at = number(step.heads * step.head_dim);
        let value_at = number((step.heads + step.kv_heads) * step.head_dim);
        let table = floats(rope.map_or(qkv, |(table, _)| table));
        let encoder = step.cache.is_none();

        if !manners.fresh {
            let kernel = Kernel::KvStore(StoreVariant {
                record: plan.record,
                rotary,
                norm: norming(&k_norm),
                encoder,
                ring,
            });
            let args = vec![
                floats(qkv),
                table.clone(),
                weight(&k_norm),
                Arg::Places,
                words(keys_buffer),
                words(values_buffer),
                qkv_stride.clone(),
                key_at.clone(),
                value_at.clone(),
                number(step.kv_heads),
                number(slots),
                eps(&k_norm),
                offset(&k_norm),
            ];
            let grid = [Extent::Fixed(step.kv_heads as u32), Extent::Rows(1), Extent::Fixed(1)];
            out.push(Launch { kernel, args, grid });
        }

        let tile_rows = if few { 1 } else { self.plan.tile_rows };
        // The plan admits only sizes that fit.
        let tile = LIMITS.keys(tile_rows * plan.heads_here, plan.record).unwrap_or(KeyTile::LEAST);
        let splits = if parts { plan.splits } else { 1 };
        let kernel = Kernel::Attend(AttendVariant {
            record: plan.record,
            rotary,
            q_norm: norming(&q_norm),
            k_norm: if manners.fresh { norming(&k_norm) } else { Norming::None },
            fresh: manners.fresh,
            parts,
            encoder,
            ring,
            causal: step.causal,
            pieces: plan.pieces,
            heads_here: plan.heads_here,
            tile_rows,
            keys: tile.keys,
            dot_lanes: tile.lanes,
            splits,
            split_keys: SPLIT_KEYS,
        });
        let result = self.register(step.out)?;
        let args = vec![
            floats(qkv),
            table,
            weight(&q_norm),
            weight(&k_norm),
            Arg::Places,
            words(keys_buffer),
            words(values_buffer),
            floats(if parts { self.buffer(Role::Parts(step.out.0))? } else { result }),
            floats(if parts { self.buffer(Role::Statistics(step.out.0))? } else { result }),
            qkv_stride,
            key_at,
            value_at,
            number(step.heads),
            number(step.kv_heads),
            number(slots),
            number(step.window.unwrap_or(0)),
            number(self.stride(step.out)?),
            Arg::F32(step.scale),
            Arg::F32(step.softcap.unwrap_or(0.0)),
            eps(&q_norm),
            offset(&q_norm),
            eps(&k_norm),
            offset(&k_norm),
        ];
        let cubes = (step.kv_heads * plan.pieces) as u32;
        let grid = [Extent::Fixed(cubes), Extent::Fixed(splits as u32), Extent::Tiles];
        out.push(Launch { kernel, args, grid });
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

    /// Norm, router, choice, then each expert's two products. An expert that no row takes costs two launches
    /// whose cubes end at once; its weights are not read.
    fn experts(&self, step: &Moe, columns: Columns, out: &mut Vec<Launch>) -> Result<(), Fault> {
        // Always apart: the input may be the output, and every expert reads it.
        let input = self.apart(step.input, &step.pre, out)?;
        let result = self.register(step.out)?;
        let (scores, shares) = (self.buffer(Role::Scores)?, self.buffer(Role::Shares)?);
        let score_stride = stride(step.experts);
        let width = self.wants.stretch.width(step.out)?;
        let (added, residual) = self.residual(step.residual, step.out)?;
        let router = self.wants.linear(step.router)?;
        self.product(&Product::new(router, input.clone(), scores.clone(), score_stride), columns, out);

        let number = |value: usize| Arg::U32(value as u32);
        let args = vec![
            floats(scores),
            floats(residual.as_ref().unwrap_or(scores)),
            floats(shares),
            floats(result),
            number(step.experts),
            number(step.top_k),
            number(usize::from(step.renormalize)),
            number(score_stride),
            number(self.caps.rows),
            number(stride(width)),
            number(width),
            number(added as usize),
        ];
        let grid = [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)];
        out.push(Launch { kernel: Kernel::Route(self.hardware.team), args, grid });

        for expert in 0..step.experts {
            let down = self.wants.linear(step.down_of(expert))?;
            let inner = down.0.cols;
            let gated = self.buffer(Role::Gated(inner))?.clone();
            let at = expert * self.caps.rows;
            let share = |sharing| Some(Share { shares: shares.clone(), at, sharing });
            let gate_up = self.wants.linear(step.gate_up_of(expert))?;
            let mut product = Product::new(gate_up, input.clone(), gated.clone(), stride(inner));
            product.act = step.act;
            product.gated = true;
            product.share = share(Sharing::Skip);
            self.product(&product, columns, out);
            let mut product = Product::new(down, gated, result.clone(), stride(width));
            product.residual = (Residual::Accumulate, None);
            product.share = share(Sharing::Weigh);
            self.product(&product, columns, out);
        }
        Ok(())
    }
}
