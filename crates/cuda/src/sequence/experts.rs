//! The launches of a mixture of experts.

use super::{Columns, Sequence, floats};
use crate::kernels::epilogue::Residual;
use crate::kernels::variant::Sharing;
use crate::launch::{Arg, Extent, Kernel, Launch};
use crate::product::{Product, Share};
use crate::program_plan::{Role, stride};
use halfbyte_backend::{Fault, Moe};

impl Sequence<'_> {
    /// Norm, router, choice, then each expert's two products. An expert that no row takes costs two launches
    /// whose cubes end at once; its weights are not read.
    pub(super) fn experts(&self, step: &Moe, columns: Columns, out: &mut Vec<Launch>) -> Result<(), Fault> {
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
