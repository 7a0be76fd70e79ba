//! Pieces by text and by id.

use super::model_file::{Kind, ModelFile};
use super::prefixes::Prefixes;
use crate::error::shown;
use std::collections::HashMap;
use std::sync::Arc;

/// Ids beyond the pieces that added tokens may have.
const MOST_ADDED: usize = 1 << 16;

/// A piece under its id.
#[derive(Debug, Clone)]
struct Entry {
    text: Arc<str>,
    score: f32,
    kind: Kind,
}

/// A model's pieces, and the tokens added to them. Ids may have gaps.
#[derive(Debug)]
pub(super) struct Vocabulary {
    entries: Vec<Option<Entry>>,
    /// Ids of the file.
    given: usize,
    /// What a text may be cut into.
    pieces: HashMap<Arc<str>, u32>,
    /// What stands for something else than its own text: unknown, control and byte pieces, added tokens.
    reserved: HashMap<Arc<str>, u32>,
    unknown: u32,
    /// The id of each byte, where unknown characters are spelled in bytes.
    bytes: Option<Box<[u32; 256]>>,
}

impl Vocabulary {
    /// The pieces of a file; the error says what they lack, in words that go after the file's name.
    pub fn new(file: &ModelFile<'_>) -> Result<Vocabulary, String> {
        let mut vocabulary = Vocabulary {
            entries: Vec::with_capacity(file.pieces.len()),
            given: file.pieces.len(),
            pieces: HashMap::with_capacity(file.pieces.len()),
            reserved: HashMap::new(),
            unknown: 0,
            bytes: None,
        };
        let mut unknown = None;
        for (id, piece) in (0u32..).zip(&file.pieces) {
            let text: Arc<str> = piece.text.into();
            if let Some(first) = vocabulary.id(&text) {
                return Err(format!("piece {} is there twice, as {first} and {id}", shown(&text)));
            }
            match piece.kind {
                Kind::Unknown => {
                    if let Some(first) = unknown.replace(id) {
                        return Err(format!("pieces {first} and {id} both stand for what is unknown"));
                    }
                    vocabulary.reserved.insert(text.clone(), id)
                }
                Kind::Control | Kind::Byte => vocabulary.reserved.insert(text.clone(), id),
                Kind::Normal | Kind::UserDefined | Kind::Unused => vocabulary.pieces.insert(text.clone(), id),
            };
            vocabulary.entries.push(Some(Entry { text, score: piece.score, kind: piece.kind }));
        }
        vocabulary.unknown = unknown.ok_or("no piece stands for what is unknown")?;
        if file.byte_fallback {
            let mut bytes = Box::new([0; 256]);
            for (byte, id) in (0u8..=255).zip(bytes.iter_mut()) {
                let text = format!("<0x{byte:02X}>");
                let found = vocabulary.reserved.get(text.as_str()).copied();
                *id = found.filter(|&id| vocabulary.kind(id) == Some(Kind::Byte)).ok_or_else(|| {
                    format!("it spells unknown characters in bytes, but has no piece {text} for one")
                })?;
            }
            vocabulary.bytes = Some(bytes);
        }
        Ok(vocabulary)
    }

    /// Gives a token an id: one beyond the pieces, its own, or that of a piece which nobody uses, in place of that.
    /// The error says which other id the token has, or that the id is absurd.
    pub fn assign(&mut self, id: u32, token: &str) -> Result<(), String> {
        match self.id(token) {
            Some(found) if found == id => return Ok(()),
            Some(found) => return Err(format!("it is {found} in the vocabulary")),
            None => {}
        }
        let place = id as usize;
        if place >= self.given + MOST_ADDED {
            return Err(format!("the vocabulary has {} pieces", self.given));
        }
        if place >= self.entries.len() {
            self.entries.resize(place + 1, None);
        }
        let text: Arc<str> = token.into();
        let entry = Entry { text: text.clone(), score: 0.0, kind: Kind::Control };
        if let Some(old) = self.entries[place].replace(entry) {
            self.pieces.remove(&old.text);
            self.reserved.remove(&old.text);
        }
        self.reserved.insert(text, id);
        Ok(())
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The id of the piece or token with this text.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.reserved.get(text).or_else(|| self.pieces.get(text)).copied()
    }

    /// The id of a piece that a text may be cut into.
    pub fn piece(&self, text: &str) -> Option<u32> {
        self.pieces.get(text).copied()
    }

    /// The text of an id, unless it is in a gap.
    pub fn text(&self, id: u32) -> Option<&str> {
        Some(&self.entry(id)?.text)
    }

    /// The kind of an id's piece. Added tokens are [`Kind::Control`].
    pub fn kind(&self, id: u32) -> Option<Kind> {
        Some(self.entry(id)?.kind)
    }

    /// How much an id's piece is preferred; 0 in a gap.
    pub fn score(&self, id: u32) -> f32 {
        self.entry(id).map_or(0.0, |entry| entry.score)
    }

    /// The id of what is unknown.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// The ids of bytes, where unknown characters are spelled in them.
    pub fn bytes(&self) -> Option<&[u32; 256]> {
        self.bytes.as_deref()
    }

    /// All texts with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..).zip(&self.entries).filter_map(|(id, entry)| Some((&*entry.as_ref()?.text, id)))
    }

    /// The pieces of some kinds, to be found at the beginning of a text.
    pub fn prefixes(&self, kinds: &[Kind]) -> Prefixes {
        let entries = (0..).zip(&self.entries).filter_map(|(id, entry)| Some((entry.as_ref()?, id)));
        Prefixes::new(
            entries
                .filter(|(entry, _)| kinds.contains(&entry.kind))
                .map(|(entry, id)| (entry.text.clone(), id)),
        )
    }

    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }
}
