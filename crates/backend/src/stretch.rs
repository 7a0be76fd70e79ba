//! A stretch of steps for one device.

use crate::{Fault, Kind, Norm, Pre, Step, Want, WantId};

/// A register: activations of `[rows, width]` in f32 that live as long as a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(pub u16);

/// Consecutive steps of a model on one device, with what they need.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stretch {
    /// What the steps name by [`WantId`].
    pub wants: Vec<Want>,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Width of each register.
    pub widths: Vec<usize>,
    /// Registers that [`Input::Hidden`](crate::Input::Hidden) fills, one after the other.
    pub inputs: Vec<Reg>,
    /// Registers that [`Output::Hidden`](crate::Output::Hidden) reads, one after the other.
    pub outputs: Vec<Reg>,
}

impl Stretch {
    /// The want `id`.
    ///
    /// # Errors
    /// [`Fault::Internal`] if there is none.
    pub fn want(&self, id: WantId) -> Result<&Want, Fault> {
        self.wants
            .get(id.0 as usize)
            .ok_or_else(|| Fault::Internal(format!("step names want {} of {}", id.0, self.wants.len())))
    }

    /// The width of `reg`.
    ///
    /// # Errors
    /// [`Fault::Internal`] if there is no such register.
    pub fn width(&self, reg: Reg) -> Result<usize, Fault> {
        self.widths
            .get(usize::from(reg.0))
            .copied()
            .ok_or_else(|| Fault::Internal(format!("step names register {} of {}", reg.0, self.widths.len())))
    }

    /// Checks that shapes agree from step to step. Backends call it before they compile.
    ///
    /// # Errors
    /// [`Fault::Internal`] naming the step and the shapes.
    pub fn check(&self) -> Result<(), Fault> {
        for (index, step) in self.steps.iter().enumerate() {
            self.check_step(step).map_err(|fault| Fault::Internal(format!("step {index}: {fault}")))?;
        }
        for &reg in self.inputs.iter().chain(&self.outputs) {
            self.width(reg)?;
        }
        Ok(())
    }

    fn check_step(&self, step: &Step) -> Result<(), Fault> {
        match step {
            Step::Embed(embed) => {
                let width = self.width(embed.out)?;
                let tables = [Some(embed.table), embed.positions.map(|(id, _)| id), embed.types];
                for id in tables.into_iter().flatten() {
                    same("columns of the embedding", self.linear(id)?.1, width)?;
                }
                self.norm(embed.norm, width)
            }
            Step::Linear(linear) => {
                let (rows, cols) = self.linear(linear.weight)?;
                same("width of the input", self.width(linear.input)?, cols)?;
                self.pre(&linear.pre, cols)?;
                let written = if linear.gated { rows / 2 } else { rows };
                let width = self.width(linear.out)?;
                if linear.at + written > width {
                    return Err(Fault::Internal(format!(
                        "columns {}..{} of a register of {width}",
                        linear.at,
                        linear.at + written
                    )));
                }
                if linear.out == linear.input {
                    return Err(Fault::Internal("a linear step writes the register it reads".into()));
                }
                linear.residual.map_or(Ok(()), |reg| same("width of the residual", self.width(reg)?, width))
            }
            Step::Attend(attend) => {
                if attend.kv_heads == 0 || attend.heads % attend.kv_heads != 0 {
                    return Err(Fault::Internal(format!(
                        "{} heads over {} key-value heads",
                        attend.heads, attend.kv_heads
                    )));
                }
                let qkv = (attend.heads + 2 * attend.kv_heads) * attend.head_dim;
                same("width of q|k|v", self.width(attend.qkv)?, qkv)?;
                same(
                    "width of the attention output",
                    self.width(attend.out)?,
                    attend.heads * attend.head_dim,
                )?;
                self.norm(attend.q_norm, attend.head_dim)?;
                self.norm(attend.k_norm, attend.head_dim)?;
                if let Some(id) = attend.cache {
                    let Kind::Kv(kv) = &self.want(id)?.kind else {
                        return Err(Fault::Internal(format!("{} is no KV cache", self.want(id)?.name)));
                    };
                    same("key-value heads of the cache", kv.kv_heads, attend.kv_heads)?;
                    same("head_dim of the cache", kv.head_dim, attend.head_dim)?;
                }
                if let Some(rope) = attend.rope {
                    let Kind::Rope(shape) = &self.want(rope.table)?.kind else {
                        return Err(Fault::Internal(format!(
                            "{} is no rope table",
                            self.want(rope.table)?.name
                        )));
                    };
                    same("rotated features", shape.inv_freq.len() * 2, rope.dim)?;
                    if rope.dim > attend.head_dim {
                        return Err(Fault::Internal(format!("{} of {} rotate", rope.dim, attend.head_dim)));
                    }
                }
                Ok(())
            }
            Step::Moe(moe) => {
                let hidden = self.width(moe.input)?;
                self.pre(&moe.pre, hidden)?;
                same("width of the experts' output", self.width(moe.out)?, hidden)?;
                if moe.top_k == 0 || moe.top_k > moe.experts {
                    return Err(Fault::Internal(format!("{} of {} experts", moe.top_k, moe.experts)));
                }
                if moe.out == moe.input && moe.residual != Some(moe.out) {
                    return Err(Fault::Internal("a mixture of experts writes the register it reads".into()));
                }
                let (rows, cols) = self.linear(moe.router)?;
                same("rows of the router", rows, moe.experts)?;
                same("columns of the router", cols, hidden)?;
                for expert in 0..moe.experts {
                    let (rows, cols) = self.linear(moe.gate_up_of(expert))?;
                    same("columns of an expert", cols, hidden)?;
                    let (out, inner) = self.linear(moe.down_of(expert))?;
                    same("rows of an expert's gate and up", rows, 2 * inner)?;
                    same("rows of an expert's down", out, hidden)?;
                }
                let residual = moe.residual.map(|reg| self.width(reg)).transpose()?;
                residual.map_or(Ok(()), |width| same("width of the residual", width, hidden))
            }
            Step::Head(head) => {
                let cols = self.linear(head.weight)?.1;
                same("width of the head's input", self.width(head.input)?, cols)?;
                self.pre(&head.pre, cols)
            }
        }
    }

    /// Rows and columns of the linear `id`.
    fn linear(&self, id: WantId) -> Result<(usize, usize), Fault> {
        let want = self.want(id)?;
        let Kind::Linear(shape) = &want.kind else {
            return Err(Fault::Internal(format!("{} is no matrix", want.name)));
        };
        shape.check()?;
        Ok((shape.rows(), shape.cols()))
    }

    fn norm(&self, norm: Option<Norm>, width: usize) -> Result<(), Fault> {
        let Some(norm) = norm else { return Ok(()) };
        let want = self.want(norm.weight)?;
        let Kind::Norm(shape) = &want.kind else {
            return Err(Fault::Internal(format!("{} is no norm", want.name)));
        };
        same("length of the norm", shape.len, width)
    }

    fn pre(&self, pre: &Pre, width: usize) -> Result<(), Fault> {
        self.norm(pre.post, width)?;
        self.norm(pre.norm, width)?;
        for reg in pre.residual.into_iter().chain(pre.emit.map(|emit| emit.to)) {
            same("width of the stream", self.width(reg)?, width)?;
        }
        Ok(())
    }
}

fn same(what: &str, found: usize, wanted: usize) -> Result<(), Fault> {
    if found == wanted { Ok(()) } else { Err(Fault::Internal(format!("{what} is {found}, not {wanted}"))) }
}
