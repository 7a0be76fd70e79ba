//! Runs a case on a backend, and compares two runs.

use super::{Case, Feed, Outcome, SeededWeights, Submission, Take, Verdict};
use crate::{Answer, Backend, Draw, Fault, Footprint, Input, Output, Program, Rows, Slot, Ticket};

/// Runs `wanted` on the reference and `case` on the subject (the same case, but for mutants) and
/// compares all answers.
pub(super) async fn compare(
    wanted: &Case,
    reference: &dyn Backend,
    case: &Case,
    subject: &dyn Backend,
) -> Outcome {
    let mut error = 0.0;
    let result = match answers(&wanted.without_rings(), reference).await {
        Err(fault) => Verdict::Failed(format!("the reference {}: {fault}", reference.info().name)),
        Ok(right) => match answers(case, subject).await {
            Err(Fault::Unsupported { what, .. }) => Verdict::Unsupported(what),
            Err(fault) => Verdict::Failed(fault.to_string()),
            Ok(found) => judge(wanted, &right, &found, &mut error),
        },
    };
    Outcome { step: wanted.step, case: wanted.name.clone(), error, tolerance: wanted.tolerance, result }
}

fn judge(case: &Case, right: &[Answer], found: &[Answer], error: &mut f64) -> Verdict {
    for (index, (right, found)) in right.iter().zip(found).enumerate() {
        let checked = match (right, found) {
            (Answer::Nothing, Answer::Nothing) => Ok(()),
            (Answer::Tokens(right), Answer::Tokens(found)) => {
                if right == found {
                    Ok(())
                } else {
                    *error = f64::INFINITY;
                    Err(format!("chose {found:?}, not {right:?}"))
                }
            }
            (Answer::Logits(right), Answer::Logits(found)) => {
                near("the logits", right, found, case.tolerance, error)
            }
            (Answer::Hidden(right), Answer::Hidden(found)) if right.len() == found.len() => {
                registers(case, index, right, found, error)
            }
            _ => Err(format!("answered with {}, not {}", form(found), form(right))),
        };
        if let Err(why) = checked {
            return Verdict::Failed(format!("submission {index}: {why}"));
        }
    }
    Verdict::Passed
}

/// Compares the output registers of a submission one by one, so that a large one hides no small one.
fn registers(
    case: &Case,
    submission: usize,
    right: &[f32],
    found: &[f32],
    error: &mut f64,
) -> Result<(), String> {
    let rows = case.submissions.get(submission).map_or(0, |submission| submission.places.len());
    let mut start = 0;
    for &reg in &case.stretch.outputs {
        let end = start + rows * case.stretch.width(reg).map_err(|fault| fault.to_string())?;
        let (Some(right), Some(found)) = (right.get(start..end), found.get(start..end)) else {
            return Err(format!("{} values for rows of {end} or more", right.len()));
        };
        near(&format!("register {}", reg.0), right, found, case.tolerance, error)?;
        start = end;
    }
    Ok(())
}

fn near(what: &str, right: &[f32], found: &[f32], tolerance: f64, worst: &mut f64) -> Result<(), String> {
    if right.len() != found.len() {
        *worst = f64::INFINITY;
        return Err(format!("{what}: {} values, not {}", found.len(), right.len()));
    }
    if let Some(index) = right.iter().position(|value| !value.is_finite()) {
        return Err(format!("{what}: the reference has {} at {index}", right[index]));
    }
    if let Some(index) = found.iter().position(|value| !value.is_finite()) {
        *worst = f64::INFINITY;
        return Err(format!("{what}: {} at {index} of {}", found[index], found.len()));
    }
    let square = |sum: f64, value: f64| sum + value * value;
    let pairs = right.iter().zip(found);
    let difference = pairs.map(|(&r, &f)| f64::from(f) - f64::from(r)).fold(0.0, square).sqrt();
    let size = right.iter().map(|&r| f64::from(r)).fold(0.0, square).sqrt();
    let error = if difference == 0.0 { 0.0 } else { difference / size };
    *worst = worst.max(error);
    if error <= tolerance {
        return Ok(());
    }
    let gap = |index: &usize| (found[*index] - right[*index]).abs();
    let at = (0..right.len()).max_by(|a, b| gap(a).total_cmp(&gap(b))).unwrap_or(0);
    Err(format!(
        "{what}: relative error {error:.1e} over {tolerance:.0e}; element {at} is {}, not {}",
        found[at], right[at]
    ))
}

fn form(answer: &Answer) -> String {
    match answer {
        Answer::Nothing => "nothing".to_owned(),
        Answer::Hidden(values) => format!("{} hidden values", values.len()),
        Answer::Logits(values) => format!("{} logits", values.len()),
        Answer::Tokens(tokens) => format!("{} tokens", tokens.len()),
    }
}

/// Runs a case from `reserve` to `release` and holds the ledger to the layout at every turn.
async fn answers(case: &Case, backend: &dyn Backend) -> Result<Vec<Answer>, Fault> {
    let before = backend.ledger().footprint();
    let mut expected = before.clone();
    for want in &case.stretch.wants {
        expected.add(want.purpose, backend.layout().want(&want.kind)?);
    }
    let program = backend.layout().program(&case.stretch, &case.caps)?;

    let slots = backend.reserve(&case.stretch.wants).await?;
    let answers = match equal("reserve", backend, &expected) {
        Ok(()) => {
            expected.merge(&program);
            loaded(case, backend, &slots, &expected).await
        }
        Err(fault) => Err(fault),
    };
    backend.release(&slots);
    let answers = answers?;
    equal("release", backend, &before)?;
    Ok(answers)
}

async fn loaded(
    case: &Case,
    backend: &dyn Backend,
    slots: &[Slot],
    expected: &Footprint,
) -> Result<Vec<Answer>, Fault> {
    let source = SeededWeights::new(case.seed);
    for (&slot, want) in slots.iter().zip(&case.stretch.wants) {
        if matches!(want.kind, crate::Kind::Linear(_) | crate::Kind::Norm(_)) {
            backend.upload(slot, want, &source).await?;
        }
    }
    let mut program = backend.compile(&case.stretch, slots, case.caps).await?;
    equal("compile", backend, expected)?;
    let answers = submit_all(case, program.as_mut()).await;
    let drained = program.drain().await;
    let answers = answers?;
    drained?;
    equal("the submissions", backend, expected)?;
    Ok(answers)
}

async fn submit_all(case: &Case, program: &mut dyn Program) -> Result<Vec<Answer>, Fault> {
    for (index, submission) in case.refusals.iter().enumerate() {
        let refused = match submit(case, index, submission, program) {
            Ok(ticket) => ticket.await.map(|answer| form(&answer)),
            Err(fault) => Err(fault),
        };
        match refused {
            Err(Fault::Invalid(_)) => {}
            Err(fault) => return Err(Fault::Internal(format!("refused as something else: {fault}"))),
            Ok(form) => return Err(Fault::Internal(format!("{form} where it should have refused"))),
        }
    }
    let mut answers = Vec::new();
    let mut tickets: Vec<Ticket> = Vec::new();
    for (index, submission) in case.submissions.iter().enumerate() {
        let ticket = submit(case, index, submission, program)?;
        if case.pipelined {
            tickets.push(ticket);
        } else {
            answers.push(ticket.await?);
        }
    }
    for ticket in tickets {
        answers.push(ticket.await?);
    }
    Ok(answers)
}

fn submit(
    case: &Case,
    index: usize,
    submission: &Submission,
    program: &mut dyn Program,
) -> Result<Ticket, Fault> {
    let hidden;
    let input = match &submission.feed {
        Feed::Tokens(tokens) => Input::Tokens(tokens),
        Feed::Chosen => Input::Chosen,
        Feed::Hidden(gain) => {
            hidden = case.hidden_values(index, submission.places.len(), *gain);
            Input::Hidden(&hidden)
        }
    };
    let (rows, draws): (Vec<u32>, Vec<Draw<'_>>) = match &submission.take {
        Take::Sample(draws) => draws
            .iter()
            .map(|(row, params, seen)| (*row, Draw { params: *params, seen: seen.as_deref() }))
            .unzip(),
        _ => Default::default(),
    };
    let output = match &submission.take {
        Take::Sample(_) if !program.samples() => {
            return Err(Fault::Unsupported { device: String::new(), what: "draws".into() });
        }
        Take::Sample(_) => Output::Sample { rows: &rows, draws: &draws },
        Take::Nothing => Output::Nothing,
        Take::Hidden => Output::Hidden,
        Take::Logits(rows) => Output::Logits(rows),
        Take::Greedy(rows) => Output::Greedy(rows),
    };
    program.submit(&Rows { input, places: &submission.places, output })
}

/// Checks that the ledger holds what it should.
fn equal(after: &str, backend: &dyn Backend, expected: &Footprint) -> Result<(), Fault> {
    let held = backend.ledger().footprint();
    if held == *expected {
        return Ok(());
    }
    let list = |footprint: &Footprint| {
        let parts: Vec<String> =
            footprint.iter().map(|(purpose, bytes)| format!("{purpose} {bytes} B")).collect();
        parts.join(", ")
    };
    Err(Fault::Internal(format!(
        "after {after} the ledger holds [{}], the layout says [{}]",
        list(&held),
        list(expected)
    )))
}
