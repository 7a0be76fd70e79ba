//! `halfbyte chat`: a conversation that keeps its KV cache between turns.

use super::{interrupt, print, print_json, report, say};
use crate::args::ChatArgs;
use crate::notes;
use crate::progress::Bars;
use halfbyte::{CausalLm, Error, Flow, GenerateOptions};
use std::io::{BufRead, IsTerminal};

/// What a person may type besides messages.
const HELP: &str = "/exit or Ctrl-D ends, /clear forgets, Ctrl-C stops an answer";

/// A part of the context that an answer finds free, or all that it may be long: else the oldest turns are forgotten.
const ROOM: usize = 4;

/// Reads lines from stdin and answers each; ends at end of input or `/exit`. Ctrl-C stops an answer.
pub fn run(args: &ChatArgs) -> Result<(), Error> {
    args.sample.check()?;
    let mut model = CausalLm::load(&args.model.source(), &args.model.options()?, &mut Bars::new())?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sample: args.sample.over(model.default_sampling())?,
    };
    let json = args.model.json;
    let terminal = std::io::stdin().is_terminal();
    if !model.has_chat_template() {
        say("note: this model has no chat template; what you type is continued as it is");
    }
    if terminal {
        say(HELP);
    }
    interrupt::install();
    let mut chat = model.chat(args.system.as_deref());
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            print("> ")?;
        }
        let line = match interrupt::waiting(|| lines.next()) {
            Some(line) => line.map_err(|error| Error::Usage(format!("stdin: {error}")))?,
            None => return Ok(()),
        };
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" | "/bye" => return Ok(()),
            "/clear" => {
                chat.clear();
                continue;
            }
            // What looks like a command is none of the model's business.
            other if is_command(other) => {
                say(HELP);
                continue;
            }
            _ => {}
        }
        let room = options.max_new_tokens.min(chat.model().context() / ROOM);
        let forgotten = match chat.make_room(&line, room) {
            Ok(turns) => turns,
            Err(error) if terminal => {
                say(&format!("error: {error}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        if forgotten > 0 {
            let (context, plural) = (chat.model().context(), if forgotten == 1 { "" } else { "s" });
            say(&format!(
                "note: the context of {context} tokens is full: {forgotten} turn{plural} forgotten, the oldest"
            ));
        }
        let mut broken = None;
        let quiet = notes::hold();
        let answer = chat.say_heard(&line, &options, &mut |heard| {
            if !json
                && let Some(text) = heard.text()
                && let Err(error) = print(text)
            {
                broken = Some(error);
                return Flow::Stop;
            }
            if interrupt::pressed() { Flow::Stop } else { Flow::Continue }
        });
        if let Some(error) = broken {
            return Err(error);
        }
        match answer {
            Ok(answer) if json => {
                let mut object = report::generation_json(chat.model(), &answer);
                object["forgotten_turns"] = forgotten.into();
                print_json(&object)?;
            }
            Ok(answer) => {
                print("\n")?;
                drop(quiet);
                if terminal {
                    say(&format!("[{}]", report::speed_line(chat.model(), &answer)));
                }
            }
            // One refused turn does not end a conversation with a person.
            Err(error) if terminal => say(&format!("error: {error}")),
            Err(error) => return Err(error),
        }
    }
}

/// Whether a line is one word after a slash: `/help`, `/?`, not `/usr/bin` or `/shrug, she said`.
fn is_command(line: &str) -> bool {
    line.strip_prefix('/')
        .is_some_and(|word| word == "?" || word.bytes().all(|byte| byte.is_ascii_lowercase()))
}
