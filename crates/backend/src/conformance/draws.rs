//! Draws on a device are the host's: from the same logits, the same tokens.

use super::SeededWeights;
use crate::random::Stream;
use crate::{
    Answer, Backend, Caps, DType, Draw, Embed, Fault, Format, Head, Input, Kind, LinearShape, Output, Place,
    Pre, Program, Purpose, Reg, Rows, SampleParams, Segment, Step, Stretch, Want, WantId, sample,
};

const VOCABULARY: usize = 3001;

/// Draws `rounds` times on `subject`, with settings of all kinds, and compares each token with what [`sample`] draws
/// from the logits that `subject` gives for the same row: how many different tokens there were.
///
/// # Errors
/// The round and its settings where the tokens differ, or what the backend says.
pub async fn compare_draws(subject: &dyn Backend, rounds: u32) -> Result<usize, String> {
    let said = |fault: Fault| fault.to_string();
    let stretch = stretch();
    let slots = subject.reserve(&stretch.wants).await.map_err(said)?;
    let weights = SeededWeights::new(11);
    for (want, &slot) in stretch.wants.iter().zip(&slots) {
        subject.upload(slot, want, &weights).await.map_err(said)?;
    }
    let mut program = subject.compile(&stretch, &slots, Caps { rows: 1, outputs: 1 }).await.map_err(said)?;
    if !program.samples() {
        return Err("it draws on the host".into());
    }
    let tokens = draw(&mut *program, rounds).await;
    drop(program);
    subject.release(&slots);
    let mut tokens = tokens?;
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens.len())
}

async fn draw(program: &mut dyn Program, rounds: u32) -> Result<Vec<u32>, String> {
    let mut stream = Stream::new(5);
    let mut tokens = Vec::new();
    for round in 0..rounds {
        let token = stream.below(VOCABULARY) as u32;
        let params = SampleParams {
            temperature: [0.0, 0.3, 1.0, 2.5][stream.below(4)],
            top_k: [0, 0, 1, 20, 2000][stream.below(5)],
            top_p: [1.0, 0.95, 0.3][stream.below(3)],
            repetition_penalty: [1.0, 1.2][stream.below(2)],
            seed: stream.bits(),
        };
        let logits = submit(program, token, round, Output::Logits(&[0])).await?;
        let Answer::Logits(mut logits) = logits else { return Err("no logits".into()) };
        let named: Vec<u32> = (0..round % 50).map(|i| (i * 61) % VOCABULARY as u32).collect();
        let seen: Vec<u32> = named.iter().copied().chain([token]).collect();
        let wanted = sample(&mut logits, &seen, &params, u64::from(round) + 1);
        let output = Output::Sample { rows: &[0], draws: &[Draw { params, seen: Some(&named) }] };
        let found = submit(program, token, round, output).await?;
        if found != Answer::Tokens(vec![wanted]) {
            return Err(format!("round {round}, {params:?}: {found:?}, not {wanted}"));
        }
        tokens.push(wanted);
    }
    Ok(tokens)
}

async fn submit(
    program: &mut dyn Program,
    token: u32,
    position: u32,
    output: Output<'_>,
) -> Result<Answer, String> {
    let places = [Place { sequence: 0, position, token_type: 0 }];
    let rows = Rows { input: Input::Tokens(&[token]), places: &places, output };
    let ticket = program.submit(&rows).map_err(|fault| fault.to_string())?;
    ticket.await.map_err(|fault| fault.to_string())
}

/// An embedding and a head: logits differ from token to token.
fn stretch() -> Stretch {
    let table = |name: &str| Want {
        name: name.into(),
        purpose: Purpose::Embeddings,
        kind: Kind::Linear(LinearShape::single(Segment {
            tensor: format!("{name}.weight"),
            rows: VOCABULARY,
            cols: 64,
            format: Format::Dense(DType::F32),
            bias: None,
            transposed: false,
        })),
    };
    let (out, pre) = (Reg(0), Pre::default());
    let embed = Embed { table: WantId(0), scale: 1.0, positions: None, types: None, norm: None, out };
    let head = Head { input: out, pre, weight: WantId(1), scale: 1.0, softcap: None };
    Stretch {
        wants: vec![table("table"), table("head")],
        steps: vec![Step::Embed(embed), Step::Head(head)],
        widths: vec![64],
        ..Stretch::default()
    }
}
