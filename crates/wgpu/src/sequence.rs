//! Steps to dispatches: the static list that every submission encodes again.

use crate::gpu::{Allocation, Gpu};
use crate::held::Wants;
use crate::kernels::attend::{Attention, Manner, Shard};
use crate::kernels::norm_linear::Splits;
use crate::kernels::{Places, Product, Register, Residual, argmax, attend, embed, kv_store, linear_tiled};
use crate::kernels::{norm_linear, pre, sample};
use crate::layout::stride;
use crate::pipeline::{Dispatches, Launch};
use crate::program_plan::{MAX_COLUMNS, ProgramPlan, Role, needs_dispatch};
use halfbyte_backend::gpu::parts_of;
use halfbyte_backend::{Act, Attend, Caps, Embed, EmitKind, Fault, Head, LinearStep, Pre, Reg, Step, WantId};

/// How many rows a product is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Columns {
    /// Up to 1, 2, 4 or 8: each weight is read once and decoded for all.
    Few(u32),
    /// Any number, in tiles.
    Many,
}

/// How the steps before the head run. Every submission has one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Manners {
    pub(crate) columns: Columns,
    /// Whether every row is the only one of its sequence and all attention is cached.
    pub(crate) fresh: bool,
}

impl Columns {
    /// The cheapest kind for `rows` rows.
    pub(crate) fn for_rows(rows: usize) -> Self {
        if rows > MAX_COLUMNS { Columns::Many } else { Columns::Few(rows.max(1).next_power_of_two() as u32) }
    }
}

/// Builds dispatches over a program's buffers.
pub(crate) struct Sequence<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) wants: Wants<'a>,
    pub(crate) plan: &'a ProgramPlan,
    pub(crate) buffers: &'a [Allocation],
    pub(crate) caps: Caps,
}

impl<'a> Sequence<'a> {
    /// The dispatches of all steps but the head.
    pub(crate) fn body(&self, manners: Manners) -> Result<Dispatches, Fault> {
        let mut out = Vec::new();
        for (index, step) in self.wants.stretch.steps.iter().enumerate() {
            match step {
                Step::Embed(step) => self.embed(step, &mut out)?,
                Step::Linear(step) => self.linear(step, manners, &mut out)?,
                Step::Attend(step) => self.attend(index, step, manners, &mut out)?,
                Step::Moe(step) => self.experts(step, manners.columns, &mut out)?,
                Step::Head(_) => {}
            }
        }
        self.gpu.prepare(&out)
    }

    /// The dispatches of the head, for as many outputs.
    pub(crate) fn head(&self, columns: Columns) -> Result<Dispatches, Fault> {
        let mut out = Vec::new();
        for step in &self.wants.stretch.steps {
            if let Step::Head(step) = step {
                self.head_step(step, columns, &mut out)?;
            }
        }
        self.gpu.prepare(&out)
    }

    /// The greedy choice from the logits.
    pub(crate) fn argmax(&self) -> Result<Dispatches, Fault> {
        let launch = argmax::launch(self.logits()?, self.plan.vocabulary, self.buffer(Role::Chosen)?);
        self.gpu.prepare(&[launch])
    }

    /// The draw from the logits.
    pub(crate) fn sample(&self) -> Result<Dispatches, Fault> {
        self.gpu.prepare(&[sample::launch(&sample::Sample {
            places: self.places()?,
            logits: self.logits()?,
            vocabulary: self.plan.vocabulary,
            chosen: self.buffer(Role::Chosen)?,
            seen: self.buffer(Role::Seen)?,
            candidates: self.buffer(Role::Candidates)?,
        })])
    }

    pub(crate) fn buffer(&self, role: Role) -> Result<&'a wgpu::Buffer, Fault> {
        let index = self.plan.roles.get(&role);
        let found = index.and_then(|&index| self.buffers.get(index));
        found
            .map(|allocation| &allocation.buffer)
            .ok_or_else(|| Fault::Internal(format!("a program without {role:?}")))
    }

    pub(crate) fn register(&self, reg: Reg) -> Result<Register<'a>, Fault> {
        let width = self.wants.stretch.width(reg)?;
        Ok(Register { buffer: self.buffer(Role::Register(reg.0))?, stride: stride(width) })
    }

    fn logits(&self) -> Result<Register<'a>, Fault> {
        Ok(Register { buffer: self.buffer(Role::Logits)?, stride: stride(self.plan.vocabulary) })
    }

    pub(crate) fn places(&self) -> Result<Places<'a>, Fault> {
        Ok(Places { buffer: self.buffer(Role::Places)?, caps: self.caps })
    }

    pub(crate) fn add(&self, launches: Vec<Launch<'a>>, out: &mut Vec<Launch<'a>>) -> Result<(), Fault> {
        out.extend(launches);
        Ok(())
    }

    fn embed(&self, step: &Embed, out: &mut Vec<Launch<'a>>) -> Result<(), Fault> {
        let result = self.register(step.out)?;
        let width = self.wants.stretch.width(step.out)?;
        let summed = match step.norm {
            Some(_) => Register { buffer: self.buffer(Role::Normed(width))?, ..result },
            None => result,
        };
        let linear = |id: WantId| self.wants.linear(id);
        let launches = embed::launches(&embed::Embed {
            places: self.places()?,
            table: linear(step.table)?,
            scale: step.scale,
            positions: step.positions.map(|(id, first)| linear(id).map(|held| (held, first))).transpose()?,
            types: step.types.map(linear).transpose()?,
            chosen: self.buffer(Role::Chosen)?,
            out: summed,
        });
        self.add(launches, out)?;
        if let Some(norm) = &step.norm {
            let launch = pre::launch(
                &pre::Pre {
                    places: self.places()?,
                    width,
                    input: summed.buffer,
                    out: result,
                    residual: None,
                    post: None,
                    norm: Some(self.wants.norm(norm)?),
                    emit: None,
                },
                self.gpu.tuning.get().subgroup,
            );
            self.add(vec![launch], out)?;
        }
        Ok(())
    }

    /// The input of a product after as much of `pre` as has a dispatch of its own, and whether that is
    /// all of it.
    fn input(
        &self,
        reg: Reg,
        step: &Pre,
        columns: Columns,
        out: &mut Vec<Launch<'a>>,
    ) -> Result<(Register<'a>, bool), Fault> {
        let apart = needs_dispatch(step) || (columns == Columns::Many && step.norm.is_some());
        if !apart {
            return Ok((self.register(reg)?, false));
        }
        Ok((self.apart(reg, step, out)?, true))
    }

    /// The input of a product after all of `step`, in a dispatch of its own.
    pub(crate) fn apart(
        &self,
        reg: Reg,
        step: &Pre,
        out: &mut Vec<Launch<'a>>,
    ) -> Result<Register<'a>, Fault> {
        let input = self.register(reg)?;
        let width = self.wants.stretch.width(reg)?;
        let normed = Register { buffer: self.buffer(Role::Normed(width))?, ..input };
        let register = |reg: Reg| self.register(reg).map(|register| register.buffer);
        let launch = pre::launch(
            &pre::Pre {
                places: self.places()?,
                width,
                input: input.buffer,
                out: normed,
                residual: step.residual.map(register).transpose()?,
                post: step.post.as_ref().map(|norm| self.wants.norm(norm)).transpose()?,
                norm: step.norm.as_ref().map(|norm| self.wants.norm(norm)).transpose()?,
                emit: match step.emit {
                    Some(emit) => Some((register(emit.to)?, emit.kind == EmitKind::Normed)),
                    None => None,
                },
            },
            self.gpu.tuning.get().subgroup,
        );
        self.add(vec![launch], out)?;
        Ok(normed)
    }

    /// What is added to a product that goes to `out`.
    pub(crate) fn residual(&self, residual: Option<Reg>, out: Reg) -> Result<Residual<'a>, Fault> {
        Ok(match residual {
            None => Residual::None,
            Some(reg) if reg == out => Residual::Own,
            Some(reg) => Residual::Other(self.register(reg)?.buffer),
        })
    }

    pub(crate) fn product(
        &self,
        product: &Product<'a>,
        splits: Option<Splits<'a>>,
        columns: Columns,
        out: &mut Vec<Launch<'a>>,
    ) -> Result<(), Fault> {
        let tuning = &self.gpu.tuning.get();
        let most = if product.select { self.caps.outputs } else { self.caps.rows };
        self.add(
            match (columns, tuning.prompt_columns) {
                (Columns::Few(columns), _) => norm_linear::launches(product, splits, columns, 1, tuning),
                (Columns::Many, Some(columns)) => norm_linear::launches(product, None, columns, most, tuning),
                (Columns::Many, None) => linear_tiled::launches(product, most, tuning),
            },
            out,
        )
    }

    fn linear(&self, step: &LinearStep, manners: Manners, out: &mut Vec<Launch<'a>>) -> Result<(), Fault> {
        let (input, done) = self.input(step.input, &step.pre, manners.columns, out)?;
        let norm = step.pre.norm.as_ref().filter(|_| !done);
        let product = Product {
            places: self.places()?,
            held: self.wants.linear(step.weight)?,
            input,
            norm: norm.map(|norm| self.wants.norm(norm)).transpose()?,
            act: step.act,
            gated: step.gated,
            residual: self.residual(step.residual, step.out)?,
            logit_scale: 1.0,
            softcap: 0.0,
            out: self.register(step.out)?,
            at: step.at,
            select: false,
            share: None,
        };
        let splits = match manners.columns {
            Columns::Few(_) => self.splits(step.input)?,
            Columns::Many => None,
        };
        self.product(&product, splits, manners.columns, out)
    }

    /// The splits in which `reg` lies in decode, if it does.
    fn splits(&self, reg: Reg) -> Result<Option<Splits<'a>>, Fault> {
        let Some((attend, sizes)) = parts_of(&self.plan.attends, self.wants.stretch, reg) else {
            return Ok(None);
        };
        Ok(Some(Splits {
            buffer: self.buffer(Role::Parts(reg.0))?,
            heads: attend.heads,
            head_dim: attend.head_dim,
            splits: sizes.splits,
            pairs_at: self.pairs_at(attend, sizes.splits),
        }))
    }

    /// Where the pairs of maximum and sum start in a buffer of splits.
    fn pairs_at(&self, attend: &Attend, splits: usize) -> usize {
        self.caps.rows.min(MAX_COLUMNS) * attend.heads * splits * attend.head_dim
    }

    fn attend(
        &self,
        index: usize,
        step: &'a Attend,
        manners: Manners,
        out: &mut Vec<Launch<'a>>,
    ) -> Result<(), Fault> {
        let plan = &self.plan.attends[&index];
        let (shards, slots, ring) = match step.cache {
            Some(id) => {
                let held = self.wants.kv(id)?;
                let shard =
                    |(&(first, heads), (keys, values)): (&(usize, usize), &'a (Allocation, Allocation))| {
                        Shard { first, heads, keys: &keys.buffer, values: &values.buffer }
                    };
                let shards = held.plan.shards.iter().zip(&held.shards).map(shard).collect();
                (shards, held.plan.shape.slots(), held.plan.shape.ring.is_some())
            }
            None => {
                let (keys, values) = (self.buffer(Role::Keys)?, self.buffer(Role::Values)?);
                (vec![Shard { first: 0, heads: step.kv_heads, keys, values }], self.caps.rows, false)
            }
        };
        let rope = step.rope.map(|rope| self.wants.rope(rope.table)).transpose()?;
        let attention = Attention {
            places: self.places()?,
            step,
            plan,
            qkv: self.register(step.qkv)?,
            rope: rope.map(|(buffer, pairs, _)| (buffer, pairs)),
            q_norm: step.q_norm.as_ref().map(|norm| self.wants.norm(norm)).transpose()?,
            k_norm: step.k_norm.as_ref().map(|norm| self.wants.norm(norm)).transpose()?,
            shards,
            slots,
            ring,
            encoder: step.cache.is_none(),
        };
        let few = matches!(manners.columns, Columns::Few(_));
        let parts = if few && plan.parts {
            Some((self.buffer(Role::Parts(step.out.0))?, self.pairs_at(step, plan.splits)))
        } else {
            None
        };
        let manner = Manner {
            tile_rows: if few { 1 } else { self.plan.tile_rows },
            fresh: manners.fresh,
            split_keys: self.plan.split_keys,
            parts,
            out: self.register(step.out)?,
        };
        if !manners.fresh {
            self.add(kv_store::launches(&attention), out)?;
        }
        self.add(attend::launches(&attention, &manner, &self.gpu.tuning.get()), out)
    }

    fn head_step(&self, step: &Head, columns: Columns, out: &mut Vec<Launch<'a>>) -> Result<(), Fault> {
        let (input, done) = self.input(step.input, &step.pre, columns, out)?;
        let norm = step.pre.norm.as_ref().filter(|_| !done);
        let product = Product {
            places: self.places()?,
            held: self.wants.linear(step.weight)?,
            input,
            norm: norm.map(|norm| self.wants.norm(norm)).transpose()?,
            act: Act::Identity,
            gated: false,
            residual: Residual::None,
            logit_scale: step.scale,
            softcap: step.softcap.unwrap_or(0.0),
            out: self.logits()?,
            at: 0,
            select: true,
            share: None,
        };
        self.product(&product, None, columns, out)
    }
}
