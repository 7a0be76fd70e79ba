//! Ctrl-C, and readers that go away.
#![cfg(unix)]

mod command;

use command::{Copy, command, wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A story without an end: no token stops it, and the context is long.
fn endless() -> Copy {
    let model = Copy::of("models/stories");
    model.edit("config.json", |config| {
        config["eos_token_id"] = serde_json::json!(3);
        config["max_position_embeddings"] = serde_json::json!(60_000);
    });
    model.write("generation_config.json", r#"{"eos_token_id": 3}"#);
    model
}

/// Options of a generation that does not end by itself before the test does.
fn options(model: &Copy) -> [&str; 12] {
    let name = model.name();
    [
        "run",
        name,
        "--device-map",
        "cpu",
        "--context",
        "60000",
        "-n",
        "59000",
        "--temperature",
        "0",
        "-p",
        "Once",
    ]
}

fn interrupt(child: &Child) {
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Reads until `bytes` have come.
fn read(child: &mut Child, bytes: usize) -> Vec<u8> {
    let mut begin = vec![0; bytes];
    child.stdout.as_mut().unwrap().read_exact(&mut begin).unwrap();
    begin
}

#[test]
fn ctrl_c_keeps_what_was_generated_and_exits_with_0() {
    let model = endless();
    let mut child = command(&options(&model)).spawn().unwrap();
    let mut story = read(&mut child, 40);
    interrupt(&child);
    child.stdout.take().unwrap().read_to_end(&mut story).unwrap();
    assert_eq!(wait(&mut child), Some(Some(0)));
    let story = String::from_utf8(story).unwrap();
    assert!(story.starts_with("Once") && story.ends_with('\n'), "{story}");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("new tokens at"), "{said}");
    assert!(!said.contains("error"), "{said}");
}

#[test]
fn a_second_ctrl_c_ends_a_command_that_does_not_stop() {
    let model = endless();
    // Longer than a pipe holds: the command waits for a reader and cannot stop.
    model.write("prompt.txt", "Once there was ".repeat(10_000));
    let prompt = model.file("prompt.txt");
    let file = command::text(&prompt);
    let options = ["run", model.name(), "--device-map", "cpu", "--context", "60000", "--prompt-file", file];
    let mut child = command(&options).spawn().unwrap();
    read(&mut child, 10);
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the first only asks");
    interrupt(&child);
    assert_eq!(wait(&mut child), Some(Some(130)));
}

#[test]
fn ctrl_c_stops_a_long_prompt_before_its_end() {
    let model = endless();
    let prompt = "Once there was ".repeat(10_000);
    model.write("prompt.txt", &prompt);
    let file = model.file("prompt.txt");
    let args = [
        "run",
        model.name(),
        "--device-map",
        "cpu",
        "--context",
        "60000",
        "--prompt-file",
        command::text(&file),
    ];
    let mut child = command(&args).spawn().unwrap();
    // It is shown before any of it is computed, of which there is for a minute.
    assert!(read(&mut child, prompt.len()) == prompt.as_bytes());
    let pressed = Instant::now();
    interrupt(&child);
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(wait(&mut child), Some(Some(0)));
    assert_eq!(rest, "\n");
    assert!(pressed.elapsed() < Duration::from_secs(15), "{:?}", pressed.elapsed());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains(", 0 new tokens; stopped within the prompt\n"), "{said}");
    // As many of so many: `loaded in 0.1 s; 2048 of 40001 prompt tokens at 900.0 tokens/s`.
    let counts = said.split_once(" s; ").and_then(|(_, rest)| rest.split_once(" prompt tokens")).unwrap().0;
    let (done, all) = counts.split_once(" of ").unwrap();
    let (done, all): (usize, usize) = (done.parse().unwrap(), all.parse().unwrap());
    assert!(0 < done && done < all && all > 10_000, "{said}");
}

#[test]
fn ctrl_c_in_a_conversation_stops_the_answer_and_not_the_conversation() {
    let model = endless();
    let args = ["chat", model.name(), "--device-map", "cpu", "--context", "60000", "-n", "59000"];
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Once there was\n").unwrap();
    read(&mut child, 40);
    interrupt(&child);
    // The next line is read only after the answer has stopped.
    input.write_all(b"/exit\n").unwrap();
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(wait(&mut child), Some(Some(0)));
}

#[test]
fn ctrl_c_between_answers_is_told_what_ends_and_cuts_no_answer_short() {
    let args = ["chat", "--device-map", "cpu", "-n", "12", "--temperature", "0"];
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Once there was\n").unwrap();
    let mut first = Vec::new();
    while !first.ends_with(b"\n") {
        first.extend(read(&mut child, 1));
    }
    // The answer is there; now it waits for a line.
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&child);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Ctrl-C again, Ctrl-D or /exit ends") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "it has ended: {said}");
    }
    input.write_all(b"The\n").unwrap();
    drop(input);
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(wait(&mut child), Some(Some(0)));
    let second = rest.lines().last().unwrap_or_default();
    assert!(second.split_whitespace().count() > 5, "{first:?} {rest:?}");
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let model = endless();
    let mut child = command(&options(&model)).spawn().unwrap();
    read(&mut child, 20);
    drop(child.stdout.take());
    assert_eq!(wait(&mut child), Some(Some(0)));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn nobody_on_stderr_is_no_error() {
    let args = ["run", "--device-map", "cpu", "-p", "Once", "-n", "2"];
    let mut child = command(&args).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(wait(&mut child), Some(Some(0)));
}
