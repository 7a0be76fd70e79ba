//! Kernels, their flags, and which combinations are legal.

use crate::preprocess::{ShaderError, render};

/// A fused step's file in `wgsl/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// The decode product of 1 to 8 rows of activations with its prologue and epilogue.
    NormLinear,
    /// The prompt's product.
    LinearTiled,
    /// Attention over one slice of the keys.
    Attend,
    /// Keys and values into the cache, ahead of attention.
    KvStore,
    /// Token ids to vectors.
    Embed,
    /// Residual sum and norms as a step of their own.
    Pre,
    /// Which experts a row takes.
    Route,
    /// The greedy choice.
    Argmax,
    /// A choice by chance.
    Sample,
    /// No step: how fast the device reads.
    ReadBandwidth,
}

/// What a variant has beyond its kernel's bare form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flag {
    /// Sums over subgroups; the bare form needs no feature.
    Subgroups,
    /// Weights in 4 bits; the bare form is dense.
    Q4,
    /// A bias is added.
    Bias,
    /// A residual is added that is not the output itself.
    Residual,
    /// The input is normed first.
    Norm,
    /// The input is an attention output in splits.
    Merge,
    /// Queries and keys are rotated.
    Rope,
    /// Queries are normed per head.
    QNorm,
    /// Keys are normed per head.
    KNorm,
    /// The row's own key and value are made, used and stored in the same dispatch.
    Fresh,
    /// The output is left in splits.
    Parts,
    /// Learned positions are added.
    Positions,
    /// Token types are added.
    Types,
    /// The input is normed before the residual is added.
    Post,
    /// The sum or its norm is kept beside.
    Emit,
    /// The weights are an expert's: only rows that take it count.
    Expert,
    /// Lanes ask each other for entries of the codebook instead of reading workgroup memory.
    Shuffle,
    /// Slabs of weights and inputs are in f16.
    F16,
    /// Records of keys and values are read in loads of 16 bytes.
    Wide,
}

/// A set of [`Flag`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Flags(u32);

/// A kernel with flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// Its flags.
    pub flags: Flags,
}

impl Flag {
    /// All flags.
    pub const ALL: [Flag; 19] = [
        Flag::Subgroups,
        Flag::Q4,
        Flag::Bias,
        Flag::Residual,
        Flag::Norm,
        Flag::Merge,
        Flag::Rope,
        Flag::QNorm,
        Flag::KNorm,
        Flag::Fresh,
        Flag::Parts,
        Flag::Positions,
        Flag::Types,
        Flag::Post,
        Flag::Emit,
        Flag::Expert,
        Flag::Shuffle,
        Flag::F16,
        Flag::Wide,
    ];

    /// Its name in `#if`.
    pub fn name(self) -> &'static str {
        match self {
            Flag::Subgroups => "SUBGROUPS",
            Flag::Q4 => "Q4",
            Flag::Bias => "BIAS",
            Flag::Residual => "RESIDUAL",
            Flag::Norm => "NORM",
            Flag::Merge => "MERGE",
            Flag::Rope => "ROPE",
            Flag::QNorm => "Q_NORM",
            Flag::KNorm => "K_NORM",
            Flag::Fresh => "FRESH",
            Flag::Parts => "PARTS",
            Flag::Positions => "POSITIONS",
            Flag::Types => "TYPES",
            Flag::Post => "POST",
            Flag::Emit => "EMIT",
            Flag::Expert => "EXPERT",
            Flag::Shuffle => "SHUFFLE",
            Flag::F16 => "F16",
            Flag::Wide => "WIDE",
        }
    }

    /// The flag named `name` in `#if`.
    pub(crate) fn from_name(name: &str) -> Option<Flag> {
        Flag::ALL.into_iter().find(|flag| flag.name() == name)
    }
}

impl Flags {
    /// The set of `flags`.
    pub fn of(flags: &[Flag]) -> Self {
        flags.iter().fold(Self::default(), |set, &flag| set.with(flag, true))
    }

    /// The set with `flag` in it if `present`.
    #[must_use]
    pub fn with(self, flag: Flag, present: bool) -> Self {
        if present { Self(self.0 | 1 << flag as u32) } else { self }
    }

    /// Whether `flag` is in the set.
    pub fn has(self, flag: Flag) -> bool {
        self.0 >> (flag as u32) & 1 == 1
    }
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Kernel; 10] = [
        Kernel::NormLinear,
        Kernel::LinearTiled,
        Kernel::Attend,
        Kernel::KvStore,
        Kernel::Embed,
        Kernel::Pre,
        Kernel::Route,
        Kernel::Argmax,
        Kernel::Sample,
        Kernel::ReadBandwidth,
    ];

    /// Its file's name without the ending.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::NormLinear => "norm_linear",
            Kernel::LinearTiled => "linear_tiled",
            Kernel::Attend => "attend",
            Kernel::KvStore => "kv_store",
            Kernel::Embed => "embed",
            Kernel::Pre => "pre",
            Kernel::Route => "route",
            Kernel::Argmax => "argmax",
            Kernel::Sample => "sample",
            Kernel::ReadBandwidth => "read_bandwidth",
        }
    }

    pub(crate) fn source(self) -> &'static str {
        match self {
            Kernel::NormLinear => include_str!("../wgsl/norm_linear.wgsl"),
            Kernel::LinearTiled => include_str!("../wgsl/linear_tiled.wgsl"),
            Kernel::Attend => include_str!("../wgsl/attend.wgsl"),
            Kernel::KvStore => include_str!("../wgsl/kv_store.wgsl"),
            Kernel::Embed => include_str!("../wgsl/embed.wgsl"),
            Kernel::Pre => include_str!("../wgsl/pre.wgsl"),
            Kernel::Route => include_str!("../wgsl/route.wgsl"),
            Kernel::Argmax => include_str!("../wgsl/argmax.wgsl"),
            Kernel::Sample => include_str!("../wgsl/sample.wgsl"),
            Kernel::ReadBandwidth => include_str!("../wgsl/read_bandwidth.wgsl"),
        }
    }

    /// The flags that the kernel knows.
    pub fn flags(self) -> &'static [Flag] {
        match self {
            Kernel::NormLinear => {
                use Flag::*;
                &[Subgroups, Q4, Bias, Residual, Norm, Merge, Expert, Shuffle]
            }
            Kernel::LinearTiled => &[Flag::Q4, Flag::Bias, Flag::Residual, Flag::Expert, Flag::F16],
            Kernel::Attend => {
                use Flag::*;
                &[Rope, QNorm, KNorm, Fresh, Parts, Wide]
            }
            Kernel::KvStore => &[Flag::Rope, Flag::KNorm],
            Kernel::Embed => &[Flag::Positions, Flag::Types],
            Kernel::Pre => &[Flag::Subgroups, Flag::Residual, Flag::Post, Flag::Norm, Flag::Emit],
            Kernel::Route => &[Flag::Residual],
            Kernel::Argmax | Kernel::Sample | Kernel::ReadBandwidth => &[],
        }
    }
}

impl Variant {
    /// Whether the flags make sense together.
    pub fn is_legal(self) -> bool {
        let known = Flags::of(self.kernel.flags());
        if self.flags.0 & !known.0 != 0 {
            return false;
        }
        let has = |flag| self.flags.has(flag);
        match self.kernel {
            Kernel::NormLinear if has(Flag::Shuffle) && !(has(Flag::Subgroups) && has(Flag::Q4)) => false,
            // An expert's input is normed for the router too, its result added to what `route` began.
            Kernel::NormLinear | Kernel::LinearTiled if has(Flag::Expert) => {
                !has(Flag::Norm) && !has(Flag::Merge) && !has(Flag::Residual)
            }
            Kernel::NormLinear => !(has(Flag::Norm) && has(Flag::Merge)),
            Kernel::Attend => has(Flag::Fresh) || !has(Flag::KNorm),
            _ => true,
        }
    }

    /// Every legal variant.
    pub fn all() -> Vec<Variant> {
        let mut all = Vec::new();
        for kernel in Kernel::ALL {
            let flags = kernel.flags();
            for bits in 0..1u32 << flags.len() {
                let chosen = flags.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
                let set = chosen.fold(Flags::default(), |set, (_, &flag)| set.with(flag, true));
                let variant = Variant { kernel, flags: set };
                if variant.is_legal() {
                    all.push(variant);
                }
            }
        }
        all
    }

    /// Its name, as in `norm_linear+Q4+NORM`.
    pub fn name(self) -> String {
        let mut name = self.kernel.name().to_owned();
        for flag in Flag::ALL.into_iter().filter(|&flag| self.flags.has(flag)) {
            name.push('+');
            name.push_str(flag.name());
        }
        name
    }

    /// Its WGSL.
    ///
    /// # Errors
    /// [`ShaderError`] if the flags contradict each other or a directive in the file is broken.
    pub fn wgsl(self) -> Result<String, ShaderError> {
        if !self.is_legal() {
            return Err(ShaderError::Illegal(self.name()));
        }
        render(self.kernel.name(), self.kernel.source(), self.flags)
    }

    /// Its WGSL as browsers want it: `enable subgroups;` where subgroups are used, which naga 29 does not
    /// take and does not need.
    ///
    /// # Errors
    /// As [`wgsl`](Self::wgsl).
    pub fn portable_wgsl(self) -> Result<String, ShaderError> {
        let source = self.wgsl()?;
        let enable = if self.flags.has(Flag::Subgroups) { "enable subgroups;\n" } else { "" };
        Ok(format!("{enable}{source}"))
    }
}
