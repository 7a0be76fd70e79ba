//! The steps of a program that multiply.

use crate::bound::{self, BoundPre, Epilogue, OneRow, PreView, Product};
use crate::layout::{PASS_ROWS, padded};
use crate::matrix::Matrix;
use crate::program::{Kernels, State};
use halfbyte_backend::{Act, Head, LinearStep, Reg};

impl State {
    /// A linear step over `count` rows. `next` is read after it.
    pub(crate) fn linear(
        &mut self,
        step: &LinearStep,
        pre: &BoundPre,
        (weight, next): (&Matrix, Option<&Matrix>),
        count: usize,
        kernels: &dyn Kernels,
    ) {
        let (columns, width) = (padded(weight.cols), self.width(step.out));
        let epilogue = Epilogue { act: step.act, gated: step.gated, scale: 1.0, softcap: None };
        if count == 1 && kernels.takes_one_row(weight, &epilogue) {
            let direct = pre.is_plain() && columns == weight.cols && step.input != step.out;
            if !direct {
                self.pre(step.input, pre, 0, 1, 0, kernels);
            }
            let mut out = self.take(step.out);
            let x = if direct { &self.registers[usize::from(step.input.0)] } else { &self.x };
            let range = step.at..step.at + weight.rows / if step.gated { 2 } else { 1 };
            let residual = step.residual.map(|reg| match reg == step.out {
                true => &[],
                false => &self.registers[usize::from(reg.0)][range.clone()],
            });
            let row = OneRow { weight, next, epilogue, x: &x[..columns], residual, out: &mut out[range] };
            kernels.one_row(&self.team, row, &self.scratch);
            self.put(step.out, out);
            return;
        }
        for first in (0..count).step_by(PASS_ROWS) {
            let rows = PASS_ROWS.min(count - first);
            self.pre(step.input, pre, first, rows, 0, kernels);
            let x = &mut self.x[..rows * columns];
            let product = Product { weight, next, epilogue, rows };
            let y = &mut self.y[..rows * weight.rows];
            kernels.product(&self.team, product, x, y, &self.scratch);

            let mut out = std::mem::take(&mut self.registers[usize::from(step.out.0)]);
            let range = first * width..(first + rows) * width;
            let residual = step.residual.map(|reg| match reg == step.out {
                true => &[],
                false => &self.registers[usize::from(reg.0)][range.clone()],
            });
            let stride = if step.gated { 2 } else { 1 };
            kernels.place(
                &self.team,
                &self.y[..rows * weight.rows],
                stride,
                step.at,
                residual,
                rows,
                &mut out[range],
            );
            self.put(step.out, out);
        }
    }

    /// The output head over the rows that are `wanted`.
    pub(crate) fn head(
        &mut self,
        step: &Head,
        pre: &BoundPre,
        (weight, next): (&Matrix, Option<&Matrix>),
        count: usize,
        wanted: &[u32],
        kernels: &dyn Kernels,
    ) {
        if pre.pre.emit.is_some() {
            // Rows whose logits nobody wants emit too; the product's first input row serves as scratch.
            for row in 0..count {
                self.pre(step.input, pre, row, 1, 0, kernels);
            }
        }
        let (columns, vocabulary) = (padded(weight.cols), weight.rows);
        let epilogue =
            Epilogue { act: Act::Identity, gated: false, scale: step.scale, softcap: step.softcap };
        for (pass, wanted) in wanted.chunks(PASS_ROWS).enumerate() {
            let rows = wanted.len();
            for (at, &row) in wanted.iter().enumerate() {
                self.pre(step.input, pre, row as usize, 1, at, kernels);
            }
            let x = &mut self.x[..rows * columns];
            let product = Product { weight, next, epilogue, rows };
            let first = pass * PASS_ROWS * vocabulary;
            let logits = &mut self.logits[first..first + rows * vocabulary];
            if rows == 1 && kernels.takes_one_row(weight, &epilogue) {
                let row = OneRow { weight, next, epilogue, x, residual: None, out: logits };
                kernels.one_row(&self.team, row, &self.scratch);
                continue;
            }
            if rows == 1 {
                kernels.product(&self.team, product, x, logits, &self.scratch);
                continue;
            }
            let y = &mut self.y[..rows * vocabulary];
            kernels.product(&self.team, product, x, y, &self.scratch);
            kernels.place(&self.team, y, 1, 0, None, rows, logits);
        }
    }

    /// Runs a [`Pre`](halfbyte_backend::Pre) over `rows` rows from `first` on, into the rows of the
    /// product's input from `at` on.
    pub(crate) fn pre(
        &mut self,
        input: Reg,
        pre: &BoundPre,
        first: usize,
        rows: usize,
        at: usize,
        kernels: &dyn Kernels,
    ) {
        let width = self.width(input);
        let columns = padded(width);
        let range = first * width..(first + rows) * width;
        let emit = pre.pre.emit;
        let mut emitted = emit.map(|emit| self.take(emit.to)).unwrap_or_default();
        let (post, norm) = pre.lock();
        let view = PreView {
            width,
            input: &self.registers[usize::from(input.0)][range.clone()],
            residual: pre.pre.residual.map(|reg| &self.registers[usize::from(reg.0)][range.clone()]),
            post: bound::view(&post),
            norm: bound::view(&norm),
            emit: emit.map(|emit| emit.kind),
        };
        let kept = if emit.is_some() { &mut emitted[range.clone()] } else { &mut [][..] };
        kernels.pre(&self.team, &view, &mut self.x[at * columns..(at + rows) * columns], kept);
        if let Some(emit) = emit {
            self.put(emit.to, emitted);
        }
    }
}
