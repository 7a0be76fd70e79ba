//! A mixture of experts as dispatches: norm, router, choice, then each expert's two products.
//!
//! An expert that no row takes costs two dispatches whose workgroups end at once; its weights are not
//! read. Where some row takes it, its products run over all rows of the tile and store for those only.

use crate::kernels::route::{self, Route, Share, Shares, share_stride};
use crate::kernels::{Product, Register, Residual};
use crate::layout::stride;
use crate::pipeline::Launch;
use crate::program_plan::Role;
use crate::sequence::{Columns, Sequence};
use halfbyte_backend::{Act, Fault, Moe};

impl<'a> Sequence<'a> {
    /// The dispatches of a mixture of experts.
    pub(crate) fn experts(
        &self,
        step: &Moe,
        columns: Columns,
        out: &mut Vec<Launch<'a>>,
    ) -> Result<(), Fault> {
        // Always apart: the input may be the output, and every expert reads it.
        let input = self.apart(step.input, &step.pre, out)?;
        let result = self.register(step.out)?;
        let scores = Register { buffer: self.buffer(Role::Scores)?, stride: stride(step.experts) };
        let shares = Shares { buffer: self.buffer(Role::Shares)?, stride: share_stride(self.caps.rows) };
        let router = Product {
            places: self.places()?,
            held: self.wants.linear(step.router)?,
            input,
            norm: None,
            act: Act::Identity,
            gated: false,
            residual: Residual::None,
            logit_scale: 1.0,
            softcap: 0.0,
            out: scores,
            at: 0,
            select: false,
            share: None,
        };
        self.product(&router, None, columns, out)?;
        let residual = self.residual(step.residual, step.out)?;
        let route = Route {
            scores,
            experts: step.experts,
            top_k: step.top_k,
            renormalize: step.renormalize,
            shares,
            residual,
            out: result,
            width: self.wants.stretch.width(step.out)?,
        };
        self.add(vec![route::launch(&route)], out)?;

        for expert in 0..step.experts {
            let held = self.wants.linear(step.down_of(expert))?;
            let width = held.plan.cols;
            let gated = Register { buffer: self.buffer(Role::Gated(width))?, stride: stride(width) };
            let share = Some(Share { all: shares, expert });
            let gate_up = Product {
                held: self.wants.linear(step.gate_up_of(expert))?,
                act: step.act,
                gated: true,
                out: gated,
                share,
                ..router
            };
            self.product(&gate_up, None, columns, out)?;
            let down = Product { held, input: gated, residual: Residual::Own, out: result, share, ..router };
            self.product(&down, None, columns, out)?;
        }
        Ok(())
    }
}
