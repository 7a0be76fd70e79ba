//! The element types that a safetensors file can hold.

use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal;)*) => {
        /// The type of a tensor's elements, as the safetensors format names them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum TensorDtype {
            $($(#[$doc])* $variant,)*
        }

        impl TensorDtype {
            /// Every type there is.
            pub const ALL: &'static [TensorDtype] = &[$(TensorDtype::$variant,)*];

            /// The name in a safetensors header, such as `BF16`.
            pub const fn name(self) -> &'static str {
                match self { $(TensorDtype::$variant => $name,)* }
            }

            /// Bits of one element: less than 8 for the sub-byte types.
            pub const fn bits(self) -> u64 {
                match self { $(TensorDtype::$variant => $bits,)* }
            }

            /// The type of that name in a safetensors header.
            pub fn from_name(name: &str) -> Option<TensorDtype> {
                match name { $($name => Some(TensorDtype::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool = "BOOL", 8;
    /// 4-bit float (OCP microscaling).
    F4 = "F4", 4;
    /// 6-bit float, 2 exponent bits.
    F6E2m3 = "F6_E2M3", 6;
    /// 6-bit float, 3 exponent bits.
    F6E3m2 = "F6_E3M2", 6;
    /// Unsigned byte.
    U8 = "U8", 8;
    /// Signed byte.
    I8 = "I8", 8;
    /// 8-bit float, 5 exponent bits.
    F8E5m2 = "F8_E5M2", 8;
    /// 8-bit float, 4 exponent bits.
    F8E4m3 = "F8_E4M3", 8;
    /// 8-bit power-of-two scale (OCP microscaling).
    F8E8m0 = "F8_E8M0", 8;
    /// 8-bit float, 4 exponent bits, no infinities, no negative zero.
    F8E4m3fnuz = "F8_E4M3FNUZ", 8;
    /// 8-bit float, 5 exponent bits, no infinities, no negative zero.
    F8E5m2fnuz = "F8_E5M2FNUZ", 8;
    /// Signed, 2 bytes.
    I16 = "I16", 16;
    /// Unsigned, 2 bytes.
    U16 = "U16", 16;
    /// IEEE half precision.
    F16 = "F16", 16;
    /// The upper half of an `F32`.
    BF16 = "BF16", 16;
    /// Signed, 4 bytes.
    I32 = "I32", 32;
    /// Unsigned, 4 bytes.
    U32 = "U32", 32;
    /// IEEE single precision.
    F32 = "F32", 32;
    /// Two `F32`, real and imaginary.
    C64 = "C64", 64;
    /// IEEE double precision.
    F64 = "F64", 64;
    /// Signed, 8 bytes.
    I64 = "I64", 64;
    /// Unsigned, 8 bytes.
    U64 = "U64", 64;
}

impl TensorDtype {
    /// Bytes of one element, or `None` for the sub-byte types.
    pub const fn size(self) -> Option<usize> {
        match self.bits() {
            bits if bits % 8 == 0 => Some((bits / 8) as usize),
            _ => None,
        }
    }

    /// The type that PyTorch calls `name`, with or without `torch.`: `bfloat16`, `torch.float16`, `half`.
    pub fn from_torch_name(name: &str) -> Option<TensorDtype> {
        Some(match name.strip_prefix("torch.").unwrap_or(name) {
            "bool" => TensorDtype::Bool,
            "uint8" => TensorDtype::U8,
            "int8" => TensorDtype::I8,
            "int16" | "short" => TensorDtype::I16,
            "uint16" => TensorDtype::U16,
            "int32" | "int" => TensorDtype::I32,
            "uint32" => TensorDtype::U32,
            "int64" | "long" => TensorDtype::I64,
            "uint64" => TensorDtype::U64,
            "float16" | "half" => TensorDtype::F16,
            "bfloat16" => TensorDtype::BF16,
            "float32" | "float" => TensorDtype::F32,
            "float64" | "double" => TensorDtype::F64,
            "complex64" => TensorDtype::C64,
            "float8_e4m3fn" => TensorDtype::F8E4m3,
            "float8_e5m2" => TensorDtype::F8E5m2,
            _ => return None,
        })
    }

    /// Whether the elements are real floating-point numbers of at least 16 bits.
    pub const fn is_float(self) -> bool {
        matches!(self, TensorDtype::F16 | TensorDtype::BF16 | TensorDtype::F32 | TensorDtype::F64)
    }
}

impl fmt::Display for TensorDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for &dtype in TensorDtype::ALL {
            assert_eq!(TensorDtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(TensorDtype::from_name("F128"), None);
        assert_eq!(TensorDtype::from_torch_name("torch.bfloat16"), Some(TensorDtype::BF16));
        assert_eq!(TensorDtype::F4.size(), None);
        assert_eq!(TensorDtype::F16.size(), Some(2));
    }

    #[test]
    fn the_reference_crate_knows_the_same_sizes() {
        for &dtype in TensorDtype::ALL {
            let reference: safetensors::Dtype =
                serde_json::from_value(serde_json::json!(dtype.name())).unwrap();
            assert_eq!(reference.bitsize() as u64, dtype.bits(), "{dtype}");
        }
    }
}
