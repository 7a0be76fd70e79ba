//! What naga's IR is lowered to: operations on rows of one 32-bit word a lane.
//!
//! Vectors, matrices, arrays and structures fall into rows of scalars, so that taking them apart and
//! putting them together costs nothing. A call is replaced by the body of what it calls: WGSL knows no
//! recursion. A bool is 0 or 1.

use crate::finding::Place as At;
use std::sync::Arc;

/// A row: one word for each lane.
pub(crate) type Row = u32;

/// `dst = f(a)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Copy,
    NegF,
    NegI,
    NotBool,
    NotBits,
    AbsF,
    AbsI,
    SignF,
    SignI,
    Ceil,
    Floor,
    Round,
    Trunc,
    Exp,
    Exp2,
    Log,
    Log2,
    Sqrt,
    InverseSqrt,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Tanh,
    FToU,
    FToI,
    UToF,
    IToF,
    FToBool,
    IToBool,
    BoolToF,
    ToF16,
    /// The f16 in the half `0` or `1` of a word.
    HalfOf(u32),
    /// Byte `0` to `3` of a word, unsigned.
    ByteOf(u32),
    /// The same, signed.
    SignedByteOf(u32),
    CountOnes,
    LeadingZeros,
    TrailingZeros,
    ReverseBits,
    FirstLeadingU,
    FirstLeadingI,
    FirstTrailing,
    IsNan,
    IsInf,
}

/// `dst = f(a, b)`. Floats end in F, signed integers in I, unsigned in U; I alone where both are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    AddF,
    SubF,
    MulF,
    DivF,
    RemF,
    AddI,
    SubI,
    MulI,
    DivU,
    DivI,
    RemU,
    RemI,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrI,
    EqF,
    NeF,
    LtF,
    LeF,
    EqI,
    NeI,
    LtU,
    LeU,
    LtI,
    LeI,
    MinF,
    MaxF,
    MinU,
    MaxU,
    MinI,
    MaxI,
    Pow,
    Atan2,
    /// Two f16 in a word.
    PackHalves,
    /// Sums of products of four bytes.
    DotI8,
    DotU8,
}

/// `dst = f(a, b, c)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ternary {
    /// `if a { b } else { c }`.
    Select,
    Fma,
    /// Bits of `a` from `b`, `c` of them.
    ExtractU,
    ExtractI,
}

/// The bound of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Fixed(u32),
    /// A runtime-sized array's length: words of the binding after `first`, in elements of `stride`.
    Length {
        buffer: usize,
        first: u32,
        stride: u32,
    },
}

/// An index of a pointer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub(crate) index: Row,
    /// Words of an element.
    pub(crate) stride: u32,
    pub(crate) bound: Bound,
}

/// What a pointer points into.
#[derive(Debug, Clone)]
pub(crate) enum Root {
    /// A variable of each lane's own: a row for each word.
    Own(Arc<[Row]>),
    /// Workgroup memory.
    Workgroup,
    /// The binding of this index in [`Code::buffers`].
    Buffer(usize),
    /// Immediate data.
    Immediate,
}

/// A pointer: `offset + Σ index * stride` words from the start of `root`.
#[derive(Debug, Clone)]
pub(crate) struct Pointer {
    pub(crate) root: Root,
    pub(crate) name: Arc<str>,
    pub(crate) offset: u32,
    pub(crate) terms: Vec<Term>,
    /// Whether what it points to is atomic.
    pub(crate) atomic: bool,
}

/// How an atomic combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Combine(Binary),
    Exchange,
    CompareExchange(Row),
}

/// Which lane a subgroup's lane reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gather {
    First,
    Broadcast(Row),
    Shuffle(Row),
    Down(Row),
    Up(Row),
    Xor(Row),
    QuadBroadcast(Row),
    /// Quad lanes `i` and `i ^ mask` change places.
    QuadSwap(u32),
}

/// How much of a subgroup a collective operation combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    All,
    Inclusive,
    Exclusive,
}

/// One operation.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Unary {
        f: Unary,
        to: Row,
        a: Row,
    },
    Binary {
        f: Binary,
        to: Row,
        a: Row,
        b: Row,
    },
    Ternary {
        f: Ternary,
        to: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// `to = from[index * stride + part]` of a value, for each part.
    Pick {
        to: Vec<Row>,
        from: Vec<Row>,
        index: Row,
        bound: u32,
        what: Arc<str>,
    },
    /// Masked copy into rows of a lane's own variable.
    Set {
        to: Row,
        from: Row,
    },
    Load {
        to: Vec<Row>,
        parts: Vec<u32>,
        from: Pointer,
    },
    Store {
        to: Pointer,
        parts: Vec<u32>,
        from: Vec<Row>,
    },
    Length {
        to: Row,
        buffer: usize,
        first: u32,
        stride: u32,
    },
    Atomic {
        f: Atomic,
        at: Pointer,
        value: Row,
        old: Option<Row>,
        exchanged: Option<Row>,
    },
    /// Sums, products and so on over a subgroup; `empty` begins an exclusive scan.
    Collect {
        f: Binary,
        extent: Extent,
        empty: u32,
        to: Row,
        a: Row,
    },
    Gather {
        from: Gather,
        to: Row,
        a: Row,
    },
    Ballot {
        to: [Row; 4],
        a: Option<Row>,
    },
    /// Every lane takes the lowest lane's value; another one is a finding.
    Uniform {
        to: Row,
        a: Row,
    },
    Barrier {
        workgroup: bool,
        storage: bool,
    },
}

/// An operation or a structure of them.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Op(Op, At),
    If {
        condition: Row,
        accept: Vec<Node>,
        reject: Vec<Node>,
    },
    Switch {
        selector: Row,
        cases: Vec<Case>,
    },
    Loop {
        body: Vec<Node>,
        continuing: Vec<Node>,
        break_if: Option<Row>,
        at: At,
    },
    /// The body of a function: all lanes that enter come back.
    Call(Vec<Node>),
    Break,
    Continue,
    /// Ends the lane's run of the innermost [`Node::Call`].
    Return,
}

/// A case of a switch.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// `None` is the default.
    pub(crate) value: Option<u32>,
    pub(crate) body: Vec<Node>,
    pub(crate) falls_through: bool,
}

/// A built-in value of an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builtin {
    GlobalInvocationId(u32),
    LocalInvocationId(u32),
    LocalInvocationIndex,
    WorkgroupId(u32),
    WorkgroupSize(u32),
    NumWorkgroups(u32),
    NumSubgroups,
    SubgroupId,
    SubgroupSize,
    SubgroupInvocationId,
}

/// A buffer that the shader binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BufferUse {
    pub(crate) name: String,
    pub(crate) group: u32,
    pub(crate) binding: u32,
    pub(crate) writable: bool,
    pub(crate) uniform: bool,
    /// The least bytes that must be bound.
    pub(crate) least: u64,
}

/// A variable in workgroup memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) name: String,
    /// Its first word.
    pub(crate) first: u32,
    pub(crate) words: u32,
}

/// A shader with its constants, ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Code {
    pub(crate) size: [u32; 3],
    pub(crate) rows: u32,
    /// Rows that hold the same word everywhere, always.
    pub(crate) constants: Vec<(Row, u32)>,
    /// Rows that are filled for each workgroup.
    pub(crate) builtins: Vec<(Row, Builtin)>,
    pub(crate) body: Vec<Node>,
    pub(crate) buffers: Vec<BufferUse>,
    pub(crate) shared: Vec<Shared>,
    /// Words of workgroup memory.
    pub(crate) shared_words: u32,
    /// Bytes that it takes on a GPU, where not every scalar has a word.
    pub(crate) shared_bytes: u32,
    /// Bytes that the immediate variable spans.
    pub(crate) immediate_bytes: u32,
}
