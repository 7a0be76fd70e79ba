//! `halfbyte chat`, with what a person would type on a pipe.

mod command;

use command::Kind::{Count, Counts, Text};
use command::{Copy, halfbyte_with, has_fields};
use serde_json::{Value, json};

fn chat(model: &str, more: &[&str], typed: &str) -> command::Outcome {
    let args = ["chat", model, "--device-map", "cpu", "--temperature", "0", "-n", "12"];
    halfbyte_with(&[&args, more].concat(), typed.as_bytes())
}

/// One object for each answer.
fn answers(outcome: &command::Outcome) -> Vec<Value> {
    outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let outcome = chat("stories", &["--json"], "Once there was\nThe dog was happy.\n").ok();
    let answers = answers(&outcome);
    assert_eq!(answers.len(), 2, "{}", outcome.stdout);
    for answer in &answers {
        has_fields(
            answer,
            &[("text", Text), ("token_ids", Counts), ("prompt_tokens", Count), ("cached_tokens", Count)],
        );
    }
    assert_eq!(answers[0]["cached_tokens"], 0);
    let count = |answer: &Value, key: &str| answer[key].as_u64().unwrap();
    let before = count(&answers[0], "prompt_tokens") + count(&answers[0], "new_tokens");
    // The last token of an answer may not have been computed, and one at the seam may be cut otherwise.
    assert!(count(&answers[1], "cached_tokens") + 2 >= before, "{answers:?}");
    assert!(count(&answers[1], "prompt_tokens") > before);
}

#[test]
fn what_was_cached_changes_no_answer() {
    let both = answers(&chat("stories", &["--json"], "Once there was\nThe dog was happy.\n").ok());
    let first = both[0]["text"].as_str().unwrap();
    let whole = format!("Once there was{first} The dog was happy.\n");
    let anew = answers(&chat("stories", &["--json"], &whole).ok());
    assert_eq!(both[1]["token_ids"], anew[0]["token_ids"]);
}

#[test]
fn clear_forgets_and_exit_ends() {
    let typed = "Once there was\n\n/clear\nOnce there was\n/exit\nOnce there was\n";
    let answers = answers(&chat("stories", &["--json"], typed).ok());
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["token_ids"], answers[1]["token_ids"]);
    assert_eq!(answers[0]["prompt_tokens"], answers[1]["prompt_tokens"]);
}

#[test]
fn what_looks_like_a_command_is_not_sent_to_the_model() {
    let outcome = chat("stories", &["--json"], "/help\n/?\n/\n/usr/bin is\n/bye\nOnce\n").ok();
    assert_eq!(answers(&outcome).len(), 1, "{}", outcome.stdout);
    assert_eq!(outcome.stderr.matches("/clear forgets").count(), 3, "{}", outcome.stderr);
}

#[test]
fn people_get_the_answers_alone_on_stdout() {
    let with_json = answers(&chat("stories", &["--json"], "Once there was\n").ok());
    let outcome = chat("stories", &[], "Once there was").ok();
    assert_eq!(outcome.stdout, format!("{}\n", with_json[0]["text"].as_str().unwrap()));
    assert!(outcome.stderr.contains("no chat template"), "{}", outcome.stderr);
    // End of input at once is the end, not an error.
    assert_eq!(chat("stories", &[], "").ok().stdout, "");
}

#[test]
fn a_chat_template_is_used_and_its_system_message_stays() {
    let model = Copy::of("models/stories");
    model.edit("tokenizer_config.json", |config| {
        config["chat_template"] = json!(
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% endif %}"
        );
    });
    let typed = "Hello\n/clear\nHello\n";
    let outcome = chat(model.name(), &["--json", "--system", "Be kind."], typed).ok();
    let with_system = answers(&outcome);
    assert_eq!(with_system[0]["token_ids"], with_system[1]["token_ids"]);
    assert!(!outcome.stderr.contains("no chat template"));
    let without = answers(&chat(model.name(), &["--json"], "Hello\n").ok());
    assert!(with_system[0]["prompt_tokens"].as_u64() > without[0]["prompt_tokens"].as_u64());
}

#[test]
fn a_message_beyond_the_context_is_refused_by_numbers() {
    let typed = format!("Once there was\n{}\n", "The dog was happy. ".repeat(9));
    let outcome = chat("stories", &["--json", "--context", "16"], &typed);
    let error = outcome.refused();
    assert!(error.contains("context holds 16"), "{error}");
    assert_eq!(answers(&outcome).len(), 1);
}

#[test]
fn a_conversation_that_outgrows_its_context_forgets_its_oldest_turns_and_says_so() {
    let templated = Copy::of("models/stories");
    templated.edit("tokenizer_config.json", |config| {
        // As many models' templates do, it insists on turns.
        config["chat_template"] = json!(
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n{% elif \
             (m['role'] == 'user') != ((loop.index0 - (messages[0]['role'] == 'system')|int) % 2 == 0) %}\
             {{ raise_exception('turns must alternate') }}{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
        );
    });
    for (model, more) in [("stories", &[][..]), (templated.name(), &["--system", "Be kind."])] {
        let typed: String = (1..=20).map(|turn| format!("Then came dog number {turn}.\n")).collect();
        let outcome = chat(model, &[more, &["--json", "--context", "96"]].concat(), &typed).ok();
        let answers = answers(&outcome);
        assert_eq!(answers.len(), 20);
        let forgotten: Vec<u64> =
            answers.iter().map(|one| one["forgotten_turns"].as_u64().unwrap()).collect();
        let times = forgotten.iter().filter(|&&turns| turns > 0).count();
        assert!(forgotten[..3] == [0, 0, 0] && (2..=8).contains(&times), "{forgotten:?}");
        assert_eq!(outcome.stderr.matches("note: the context of 96 tokens is full").count(), times);
        for answer in &answers {
            let count = |key: &str| answer[key].as_u64().unwrap();
            assert!(count("prompt_tokens") + 12 <= 96 && count("new_tokens") == 12, "{answer}");
            // What is not forgotten is not computed again.
            let new = count("prompt_tokens") - count("cached_tokens");
            assert!(count("forgotten_turns") > 0 || new < 36, "{new}: {answer}");
        }
    }
}

#[test]
fn lines_that_are_no_text_are_refused() {
    let args = ["chat", "--device-map", "cpu"];
    halfbyte_with(&args, b"caf\xe9\n").refused_with(&["stdin", "UTF-8"]);
}
