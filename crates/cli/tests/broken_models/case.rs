//! What is broken, and what is to be said of it.

use crate::command::{Copy, Outcome};

/// A model with one thing wrong, and what the refusal must name.
pub struct Case {
    name: &'static str,
    break_it: fn(&Copy),
    parts: &'static [&'static str],
}

pub const fn case(name: &'static str, break_it: fn(&Copy), parts: &'static [&'static str]) -> Case {
    Case { name, break_it, parts }
}

/// Breaks copies of `model` and calls the command on each; tells all cases that go wrong, not the first.
pub fn check(model: &str, cases: &[Case], call: impl Fn(&Copy) -> Outcome) {
    let mut wrong = Vec::new();
    for case in cases {
        let copy = Copy::of(model);
        (case.break_it)(&copy);
        let outcome = call(&copy);
        let check = std::panic::AssertUnwindSafe(|| outcome.refused_with(case.parts));
        if std::panic::catch_unwind(check).is_err() {
            let said: String = outcome.stderr.chars().take(600).collect();
            wrong.push(format!("{}: code {:?}, {said:?}, wanted {:?}", case.name, outcome.code, case.parts));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

pub fn become_directory(model: &Copy, name: &str) {
    model.remove(name);
    std::fs::create_dir(model.file(name)).unwrap();
}
