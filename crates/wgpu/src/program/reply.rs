//! What a submission copies back, and what becomes of the bytes.

use super::WgpuProgram;
use crate::answers::Pending;
use crate::gpu::Gpu;
use crate::layout::stride;
use crate::program_plan::Role;
use halfbyte_backend::{Answer, Fault};
use std::rc::Rc;

/// What a submission copies back.
pub(super) enum Reply {
    Nothing,
    Tokens(usize),
    Logits { rows: usize, width: usize },
    Hidden { rows: usize, widths: Vec<usize> },
}

impl WgpuProgram {
    /// Copies what the output wants to `to`.
    pub(super) fn copy_reply(
        &self,
        reply: &Reply,
        to: &wgpu::Buffer,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<u64, Fault> {
        match reply {
            Reply::Nothing => Ok(0),
            Reply::Tokens(count) => {
                let len = *count as u64 * 4;
                encoder.copy_buffer_to_buffer(self.buffer(Role::Chosen)?, 0, to, 0, len);
                Ok(len)
            }
            Reply::Logits { rows, width } => {
                let len = (rows * stride(*width)) as u64 * 4;
                encoder.copy_buffer_to_buffer(self.buffer(Role::Logits)?, 0, to, 0, len);
                Ok(len)
            }
            Reply::Hidden { rows, widths } => {
                let mut at = 0;
                for (reg, width) in self.stretch.outputs.iter().zip(widths) {
                    let len = (rows * stride(*width)) as u64 * 4;
                    encoder.copy_buffer_to_buffer(self.buffer(Role::Register(reg.0))?, 0, to, at, len);
                    at += len;
                }
                Ok(at)
            }
        }
    }
}

/// Rows of `width` out of rows that are padded to whole groups.
fn unpad(bytes: &[u8], rows: usize, width: usize, out: &mut Vec<f32>) {
    for row in bytes.chunks_exact(stride(width) * 4).take(rows) {
        out.extend(row[..width * 4].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    }
}

/// The answer, once the bytes are there.
pub(super) async fn answer(gpu: Rc<Gpu>, pending: Rc<Pending>, reply: Reply) -> Result<Answer, Fault> {
    let bytes = pending.bytes(&gpu).await?;
    Ok(match reply {
        Reply::Nothing => Answer::Nothing,
        Reply::Tokens(_) => Answer::Tokens(
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        ),
        Reply::Logits { rows, width } => {
            let mut out = Vec::with_capacity(rows * width);
            unpad(&bytes, rows, width, &mut out);
            Answer::Logits(out)
        }
        Reply::Hidden { rows, widths } => {
            let mut out = Vec::with_capacity(rows * widths.iter().sum::<usize>());
            let mut at = 0;
            for width in widths {
                unpad(&bytes[at..], rows, width, &mut out);
                at += rows * stride(width) * 4;
            }
            Answer::Hidden(out)
        }
    })
}
