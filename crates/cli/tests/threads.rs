//! `--threads`: as many as this process may use processors.

mod command;

use command::{Outcome, command, finish, halfbyte};

/// What `run` says with so many `threads`.
fn run(threads: &str) -> Outcome {
    halfbyte(&["run", "--device-map", "cpu", "-p", "Once", "-n", "3", "--threads", threads])
}

fn note(outcome: &Outcome) -> Option<&str> {
    outcome.stderr.lines().find(|line| line.starts_with("note: --threads"))
}

#[test]
fn more_threads_than_processors_are_not_started_and_one_line_says_so() {
    let may = std::thread::available_parallelism().unwrap().get();
    for (threads, fewer) in [(1, false), (may, false), (may + 1, true), (9999, true), (usize::MAX, true)] {
        let outcome = run(&threads.to_string()).ok();
        let plural = if may == 1 { "" } else { "s" };
        let wanted = format!(
            "note: --threads {threads}: {may} thread{plural}, since this process may use {may} processor{plural}"
        );
        assert_eq!(note(&outcome), fewer.then_some(wanted.as_str()), "{}", outcome.stderr);
    }
    let planned = halfbyte(&["plan", "--device-map", "cpu", "--threads", "9999", "--json"]).ok();
    assert!(note(&planned).is_some(), "{}", planned.stderr);
    // Each thread has scratch memory of its own: those that do not work take none.
    let bytes = |outcome: &Outcome| outcome.json()["devices"][0]["scratch_bytes"].as_u64().unwrap();
    let all = halfbyte(&["plan", "--device-map", "cpu", "--threads", &may.to_string(), "--json"]).ok();
    assert_eq!(bytes(&planned), bytes(&all));
}

/// `taskset` leaves one processor.
#[test]
#[cfg(target_os = "linux")]
fn an_affinity_counts() {
    let first = std::fs::read_to_string("/proc/self/status").unwrap();
    let first = first.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first: String = first.chars().take_while(char::is_ascii_digit).collect();
    let binary = command(&[]).get_program().to_owned();
    let args =
        ["-c", &first, &binary.into_string().unwrap(), "run", "--device-map", "cpu", "-p", "Once", "-n"];
    let args = [&args[..], &["3", "--threads", "2"]].concat();
    let mut taskset = std::process::Command::new("taskset");
    taskset.args(&args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let outcome = finish(&args, taskset.spawn().expect("taskset is part of util-linux")).ok();
    let wanted = "note: --threads 2: 1 thread, since this process may use 1 processor";
    assert_eq!(note(&outcome), Some(wanted), "{}", outcome.stderr);
}

#[test]
fn nobody_at_all_is_refused() {
    run("0").refused_with(&["--threads 0", "one thread at least"]);
    run("-1").misused("-1");
    run("many").misused("--threads");
    // The library says the same.
    let options = halfbyte::LoadOptions { threads: Some(0), ..halfbyte::LoadOptions::default() };
    let source = halfbyte::ModelSource::Bundled("stories".into());
    let error = halfbyte::CausalLm::load(&source, &options, &mut halfbyte::Silent).unwrap_err();
    assert!(error.to_string().contains("threads is 0"), "{error}");
}
