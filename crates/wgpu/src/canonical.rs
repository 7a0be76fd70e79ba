//! A segment's canonical bytes, wherever they are.

use halfbyte_backend::{Canonical, DType, Mapped, MappedQuantized, MappedScales};
use halfbyte_quant::Absmax;

/// A segment: given for us, or lying in a file or in another device's memory.
pub(crate) enum Data<'a> {
    Given(Canonical<'a>),
    Lying(Mapped),
}

/// What a [`Data`] holds.
pub(crate) enum Bytes<'a> {
    /// `[rows, cols]`, row-major, little-endian.
    Dense { dtype: DType, bytes: &'a [u8] },
    /// Codes over the flattened `[rows, cols]`, two a byte.
    Quantized { blocksize: usize, code: &'a [f32; 16], packed: &'a [u8], scales: Scales<'a> },
}

/// The scales of blocks.
pub(crate) enum Scales<'a> {
    /// `[blocks]` f32, little-endian.
    Plain(&'a [u8]),
    /// `map[codes[i]] * absmax[i / blocksize] + offset`
    Nested { codes: &'a [u8], absmax: &'a [f32], map: &'a [f32; 256], offset: f32, blocksize: usize },
}

impl Data<'_> {
    /// To look at. Bytes in a file may wait for the disk when they are.
    pub(crate) fn bytes(&self) -> Bytes<'_> {
        match self {
            Data::Given(Canonical::Dense { dtype, bytes }) => Bytes::Dense { dtype: *dtype, bytes },
            Data::Lying(Mapped::Dense { dtype, bytes }) => {
                Bytes::Dense { dtype: *dtype, bytes: bytes.bytes() }
            }
            Data::Given(Canonical::Quantized(data)) => Bytes::Quantized {
                blocksize: data.blocksize,
                code: &data.code,
                packed: &data.packed,
                scales: match &data.absmax {
                    Absmax::Plain(values) => Scales::Plain(bytemuck::cast_slice(values)),
                    Absmax::Nested { codes, absmax, offset, code, blocksize } => {
                        Scales::Nested { codes, absmax, map: code, offset: *offset, blocksize: *blocksize }
                    }
                },
            },
            Data::Lying(Mapped::Quantized(MappedQuantized { blocksize, code, packed, scales })) => {
                let scales = match scales {
                    MappedScales::Plain(values) => Scales::Plain(values.bytes()),
                    MappedScales::Nested { codes, absmax, map, offset, blocksize } => Scales::Nested {
                        codes: codes.bytes(),
                        absmax,
                        map,
                        offset: *offset,
                        blocksize: *blocksize,
                    },
                };
                Bytes::Quantized { blocksize: *blocksize, code, packed: packed.bytes(), scales }
            }
        }
    }
}
