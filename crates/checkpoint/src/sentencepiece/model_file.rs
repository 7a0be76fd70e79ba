//! What a sentencepiece file says: its pieces, and how it was trained and normalizes.

use super::protobuf::{Fields, Value};

/// The largest file that is read. Gemma's 256 thousand pieces are 4 MiB.
pub(super) const LARGEST_FILE: usize = 64 << 20;
/// The most pieces that are read: sixteen times Gemma's.
const MOST_PIECES: usize = 1 << 22;

/// What kind of thing a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text.
    Normal,
    /// What stands for everything without a piece.
    Unknown,
    /// Never in a text, such as `</s>`.
    Control,
    /// Always a token of its own.
    UserDefined,
    /// One byte of a character without a piece.
    Byte,
    /// Split again wherever it arises.
    Unused,
}

/// One piece; its id is its place in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    pub score: f32,
    pub kind: Kind,
}

/// By what a text is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// The most likely sequence of pieces.
    Unigram,
    /// Merging neighbours, the best-scored pair first.
    Bpe,
}

/// A file, read and checked; pieces are not empty and their scores are numbers.
#[derive(Debug)]
pub(super) struct ModelFile<'a> {
    pub pieces: Vec<Piece<'a>>,
    pub method: Method,
    /// The space goes behind a word instead of before it.
    pub space_behind: bool,
    /// What is unknown is spelled in bytes.
    pub byte_fallback: bool,
    /// The text of the piece that begins a text, if the model was trained with one.
    pub bos: Option<&'a str>,
    /// The text of the piece that ends a text, if the model was trained with one.
    pub eos: Option<&'a str>,
    /// Replacements of characters; empty: none.
    pub charsmap: &'a [u8],
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

/// `trainer_spec`'s fields of interest, with the values that they have where the file is silent.
struct Trainer<'a> {
    model_type: i32,
    space_behind: bool,
    byte_fallback: bool,
    bos_id: i32,
    eos_id: i32,
    bos: &'a str,
    eos: &'a str,
}

/// `normalizer_spec`'s.
struct Rules<'a> {
    charsmap: &'a [u8],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl<'a> ModelFile<'a> {
    /// Reads a file; the error says what is wrong, in words that go after the file's name.
    pub fn parse(bytes: &'a [u8]) -> Result<ModelFile<'a>, String> {
        if bytes.len() > LARGEST_FILE {
            return Err(format!(
                "{} bytes, more than {} MiB, are no sentencepiece model",
                bytes.len(),
                LARGEST_FILE >> 20
            ));
        }
        let mut pieces = Vec::new();
        let mut trainer = Trainer {
            model_type: 1,
            space_behind: false,
            byte_fallback: false,
            bos_id: 1,
            eos_id: 2,
            bos: "<s>",
            eos: "</s>",
        };
        let mut rules = Rules {
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields::of(bytes) {
            match field? {
                (1, value) => {
                    let id = pieces.len();
                    if id == MOST_PIECES {
                        return Err(format!("it has more than {MOST_PIECES} pieces"));
                    }
                    pieces.push(piece(value).map_err(|problem| format!("piece {id}: {problem}"))?);
                }
                (2, value) => trainer.read(value).map_err(|problem| format!("trainer_spec: {problem}"))?,
                (3, value) => rules.read(value).map_err(|problem| format!("normalizer_spec: {problem}"))?,
                (5, value) => {
                    let mut denormalizer = Rules { charsmap: &[], ..rules };
                    denormalizer.read(value).map_err(|problem| format!("denormalizer_spec: {problem}"))?;
                    if !denormalizer.charsmap.is_empty() {
                        return Err(
                            "it rewrites decoded texts (denormalizer_spec), which is not supported".into()
                        );
                    }
                }
                _ => {}
            }
        }
        if pieces.is_empty() {
            return Err("it has no pieces".into());
        }
        let method = match trainer.model_type {
            1 => Method::Unigram,
            2 => Method::Bpe,
            3 => return Err("it is a WORD model; BPE and Unigram are read".into()),
            4 => return Err("it is a CHAR model; BPE and Unigram are read".into()),
            other => return Err(format!("its model_type is {other}; 1 (Unigram) and 2 (BPE) are read")),
        };
        Ok(ModelFile {
            pieces,
            method,
            space_behind: trainer.space_behind,
            byte_fallback: trainer.byte_fallback,
            bos: (trainer.bos_id >= 0).then_some(trainer.bos),
            eos: (trainer.eos_id >= 0).then_some(trainer.eos),
            charsmap: rules.charsmap,
            add_dummy_prefix: rules.add_dummy_prefix,
            remove_extra_whitespaces: rules.remove_extra_whitespaces,
            escape_whitespaces: rules.escape_whitespaces,
        })
    }
}

impl<'a> Trainer<'a> {
    fn read(&mut self, value: Value<'a>) -> Result<(), String> {
        for field in Fields::of(message(value)?) {
            match field? {
                (3, value) => self.model_type = number(value)?,
                (24, value) => self.space_behind = flag(value)?,
                (35, value) => self.byte_fallback = flag(value)?,
                (41, value) => self.bos_id = number(value)?,
                (42, value) => self.eos_id = number(value)?,
                (46, value) => self.bos = text(value)?,
                (47, value) => self.eos = text(value)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'a> Rules<'a> {
    fn read(&mut self, value: Value<'a>) -> Result<(), String> {
        for field in Fields::of(message(value)?) {
            match field? {
                (2, value) => self.charsmap = message(value)?,
                (3, value) => self.add_dummy_prefix = flag(value)?,
                (4, value) => self.remove_extra_whitespaces = flag(value)?,
                (5, value) => self.escape_whitespaces = flag(value)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn piece(value: Value<'_>) -> Result<Piece<'_>, String> {
    let mut piece = Piece { text: "", score: 0.0, kind: Kind::Normal };
    for field in Fields::of(message(value)?) {
        match field? {
            (1, value) => piece.text = text(value)?,
            (2, value) => piece.score = value.float().ok_or("its score is no number")?,
            (3, value) => {
                piece.kind = match number(value)? {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => return Err(format!("its type is {other}; there are 1 to 6")),
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err("it is empty".into());
    }
    if !piece.score.is_finite() {
        return Err(format!("its score is {}", piece.score));
    }
    Ok(piece)
}

fn message(value: Value<'_>) -> Result<&[u8], String> {
    value.bytes().ok_or_else(|| "a number where bytes should be".into())
}

fn text(value: Value<'_>) -> Result<&str, String> {
    std::str::from_utf8(message(value)?).map_err(|error| format!("it is not UTF-8: {error}"))
}

fn number(value: Value<'_>) -> Result<i32, String> {
    value.int().ok_or_else(|| "no number of 32 bits where one should be".into())
}

fn flag(value: Value<'_>) -> Result<bool, String> {
    value.flag().ok_or_else(|| "bytes where a flag should be".into())
}
