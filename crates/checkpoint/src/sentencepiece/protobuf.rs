//! The wire format of protocol buffers, as far as sentencepiece's files need it, with every length checked.

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Wire type 0: numbers, flags, enumerations.
    Varint(u64),
    /// Wire type 1: eight bytes, little-endian.
    Fixed64(u64),
    /// Wire type 2: texts, bytes, messages within messages.
    Bytes(&'a [u8]),
    /// Wire type 5: four bytes, little-endian.
    Fixed32(u32),
}

impl<'a> Value<'a> {
    /// The bytes of a text or message.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// A signed number of 32 bits, which the wire has as 64.
    pub fn int(self) -> Option<i32> {
        match self {
            Value::Varint(value) => i32::try_from(value.cast_signed()).ok(),
            _ => None,
        }
    }

    /// A flag.
    pub fn flag(self) -> Option<bool> {
        match self {
            Value::Varint(value) => Some(value != 0),
            _ => None,
        }
    }

    /// A number of 32 bits with a fraction.
    pub fn float(self) -> Option<f32> {
        match self {
            Value::Fixed32(bits) => Some(f32::from_bits(bits)),
            _ => None,
        }
    }
}

/// The fields of one message, in the order of the file. After an error there are no more.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Fields<'a> {
        Fields { bytes: message, at: 0 }
    }

    fn read(&mut self) -> Result<(u64, Value<'a>), String> {
        let start = self.at;
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            other => {
                return Err(format!("the field at byte {start} is of wire type {other}, which there is not"));
            }
        };
        match tag >> 3 {
            0 => Err(format!("the field at byte {start} has the number 0")),
            number => Ok((number, value)),
        }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(format!("the number at byte {start} is longer than ten bytes"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64)?;
        bytes.try_into().map_err(|_| "it is cut off".to_string())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or_else(|| {
            format!("at byte {} it wants {length} more bytes and has {}", self.at, rest.len())
        })?;
        self.at += taken.len();
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>, String> {
        Fields::of(bytes).collect()
    }

    #[test]
    fn every_wire_type_is_read() {
        let bytes =
            [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f, 0x21, 1, 0, 0, 0, 0, 0, 0, 0];
        let fields = all(&bytes).unwrap();
        let expected = [
            (1, Value::Varint(150)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Fixed32(1.0f32.to_bits())),
            (4, Value::Fixed64(1)),
        ];
        assert_eq!(fields, expected);
        assert_eq!(fields[2].1.float(), Some(1.0));
        // -1 is ten bytes.
        let minus_one = [8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(all(&minus_one).unwrap()[0].1.int(), Some(-1));
    }

    #[test]
    fn what_is_cut_off_or_absurd_is_said() {
        for (bytes, said) in [
            (&[0x08][..], "wants 1 more bytes and has 0"),
            (&[0x12, 5, b'h'], "wants 5 more bytes and has 1"),
            (&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "wants 18446744073709551615"),
            (&[0x0b], "wire type 3"),
            (&[0x02, 0], "number 0"),
            (&[8, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1], "longer than ten bytes"),
            (&[0x1d, 0, 0], "wants 4 more bytes and has 2"),
        ] {
            let error = all(bytes).unwrap_err();
            assert!(error.contains(said), "{error}");
            assert_eq!(Fields::of(bytes).count(), 1, "{error}");
        }
    }
}
