//! sentencepiece files written by hand, field by field.

/// Kinds of pieces.
pub const NORMAL: u64 = 1;
pub const UNKNOWN: u64 = 2;
pub const CONTROL: u64 = 3;
pub const USER_DEFINED: u64 = 4;
pub const BYTE: u64 = 6;

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field that is a number.
pub fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that is bytes, a text or a message.
pub fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

pub fn float(field: u64, value: f32) -> Vec<u8> {
    [varint(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

pub fn piece(text: &str, score: f32, kind: u64) -> Vec<u8> {
    bytes(1, &[bytes(1, text.as_bytes()), float(2, score), number(3, kind)].concat())
}

/// The fields of `trainer_spec`.
pub fn trainer(fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(2, &fields.concat())
}

/// The fields of `normalizer_spec`.
pub fn rules(fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(3, &fields.concat())
}

/// `<unk>`, `<s>`, `</s>` and letters.
pub fn small() -> Vec<Vec<u8>> {
    let mut parts =
        vec![piece("<unk>", 0.0, UNKNOWN), piece("<s>", 0.0, CONTROL), piece("</s>", 0.0, CONTROL)];
    for (rank, text) in ["▁", "a", "b", "ab", "▁ab"].into_iter().enumerate() {
        parts.push(piece(text, -(rank as f32), NORMAL));
    }
    parts
}
