//! XLM-R's ids for the pieces of a sentencepiece file: fairseq's, as transformers' `XLMRobertaTokenizer` has them.
//!
//! fairseq puts four symbols of its own before the pieces and leaves out sentencepiece's three, so that all others have an id
//! that is one more than their place in the file; the mask comes behind all.

use super::model_file::{Kind, Piece};
use crate::error::shown;

/// What stands for a word that is to be guessed.
pub(super) const MASK: &str = "<mask>";

/// A file's pieces by XLM-R's ids; the error says what is wrong, in words that go after the file's name.
pub(super) fn pieces<'a>(file: &[Piece<'a>]) -> Result<Vec<Piece<'a>>, String> {
    const BEGINNING: [(&str, Kind); 3] =
        [("<unk>", Kind::Unknown), ("<s>", Kind::Control), ("</s>", Kind::Control)];
    let begins = |piece: &Piece<'_>, (text, kind): (&str, Kind)| piece.text == text && piece.kind == kind;
    let Some((first, rest)) = file
        .split_at_checked(BEGINNING.len())
        .filter(|(first, _)| first.iter().zip(BEGINNING).all(|(piece, wanted)| begins(piece, wanted)))
    else {
        let there: Vec<String> = file.iter().take(BEGINNING.len()).map(|piece| shown(piece.text)).collect();
        return Err(format!(
            "not XLM-R's, as its configuration says: its pieces begin with {} instead of <unk>, <s>, </s>; take the tokenizer.json of the model, or convert it in Python with AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)",
            there.join(", ")
        ));
    };
    let symbol = |text: &'static str| Piece { text, score: 0.0, kind: Kind::Control };
    let own = [first[1], symbol("<pad>"), first[2], first[0]];
    Ok(own.iter().chain(rest).copied().chain([symbol(MASK)]).collect())
}
