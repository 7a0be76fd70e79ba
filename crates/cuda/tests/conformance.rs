//! The whole conformance table on the wgpu runtime, against the scalar CPU.

use halfbyte_backend::conformance::{Case, Verdict, cases, run_case};
use halfbyte_cpu::CpuBackend;
use halfbyte_cuda::{CubeBackend, Trial, WgpuRuntime};

/// Runs the cases that `wanted` takes.
fn table(subject: &CubeBackend<WgpuRuntime>, wanted: impl Fn(&Case) -> bool) {
    let reference = CpuBackend::scalar();
    let (mut passed, mut failures) = (0, Vec::new());
    // One case by its name, for whoever looks for an error.
    let only = std::env::var("HALFBYTE_CASE").ok();
    let all = cases();
    let wanted: Vec<&Case> = all.iter().filter(|case| wanted(case)).collect();
    for &case in &wanted {
        let name = format!("{}: {}", case.step, case.name);
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let start = std::time::Instant::now();
        let outcome = pollster::block_on(run_case(case, &reference, subject));
        println!("{name}: {:.1e} {:?} {:?}", outcome.error, outcome.result, start.elapsed());
        match &outcome.result {
            Verdict::Passed => passed += 1,
            _ => failures.push(outcome),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(passed > 20 && passed == wanted.len() || only.is_some(), "only {passed} cases ran");
}

/// Half of the whole table; [`what_is_no_attention`] is the other. Apart, since a device's server compiles one kernel
/// after the other.
#[test]
fn attention() {
    let subject =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    table(&subject, is_attention);
}

#[test]
fn what_is_no_attention() {
    // Another server, where there is a second device.
    let subject =
        CubeBackend::<WgpuRuntime>::open_nth(1).or_else(|_| CubeBackend::<WgpuRuntime>::open()).unwrap();
    table(&subject, |case| !is_attention(case));
}

fn is_attention(case: &Case) -> bool {
    matches!(case.step, "attend" | "merge_linear")
}

#[test]
fn recorded_steps_say_the_same() {
    // What CUDA replays as a graph: the steps that end in logits or a choice. Trusted at once; on trial; and where the
    // recording says something else or its driver fails, which must be seen, and CubeCL's answer taken.
    let reference = CpuBackend::scalar();
    for trial in [None, Some(Trial::Same), Some(Trial::Differs), Some(Trial::Fails)] {
        let subject = CubeBackend::<WgpuRuntime>::open().unwrap().with_recordings(trial);
        for case in cases().iter().filter(|case| case.step == "sample") {
            let outcome = pollster::block_on(run_case(case, &reference, &subject));
            assert_eq!(outcome.result, Verdict::Passed, "{trial:?}: {}: {}", case.step, case.name);
        }
        let verdicts = subject.trials();
        match trial {
            None => assert!(verdicts.is_empty()),
            Some(Trial::Same) => {
                assert!(verdicts.iter().all(|verdict| verdict.starts_with("a step as one graph takes")))
            }
            Some(Trial::Differs) => assert!(verdicts.iter().all(|verdict| verdict.contains("differs by"))),
            Some(Trial::Fails) => {
                assert!(verdicts.iter().all(|verdict| verdict.contains("a driver that fails")))
            }
        }
        assert!(trial.is_none() || verdicts.len() >= 3, "{trial:?}: only {} trials", verdicts.len());
    }
}

#[test]
#[ignore = "the software adapter takes a minute and a half: see CONTRIBUTING"]
fn prompts_through_tensor_cores_say_the_same() {
    // With loops in place of the fragments: what is left are decoding, layouts, indices and numbers.
    let subject = CubeBackend::<WgpuRuntime>::open().unwrap().with_plain_cores();
    let reference = CpuBackend::scalar();
    let mut many = 0;
    for case in cases() {
        // Many rows go through tiles.
        let tiled = case.submissions.iter().any(|submission| submission.places.len() > 8);
        if !tiled || matches!(case.step, "attend" | "embed" | "pre") {
            continue;
        }
        let start = std::time::Instant::now();
        let outcome = pollster::block_on(run_case(&case, &reference, &subject));
        println!("{}: {}: {:.1e} {:?}", case.step, case.name, outcome.error, start.elapsed());
        assert_eq!(outcome.result, Verdict::Passed, "{}: {}", case.step, case.name);
        many += 1;
    }
    assert!(many > 20, "only {many} cases have many rows");
}
