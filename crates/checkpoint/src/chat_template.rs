//! Chat templates: Jinja as transformers renders it.

use crate::error::{CheckpointError, shown};
use crate::template_limits;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::LazyLock;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A conversation as JSON, with all that a template may take.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The turns: objects with `role`, `content`, and what else the template knows, such as `tool_calls`.
    pub messages: &'a [Value],
    /// The functions that the model may call, as JSON schemas.
    pub tools: &'a [Value],
    /// Whether it is to end where the model is to answer.
    pub add_generation_prompt: bool,
    /// Other variables that the template knows, such as `enable_thinking`.
    pub variables: &'a Map<String, Value>,
}

impl Default for Conversation<'_> {
    fn default() -> Self {
        static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        Conversation { messages: &[], tools: &[], add_generation_prompt: false, variables: &NONE }
    }
}

impl ChatMessage {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    file: String,
    source: String,
}

impl ChatTemplate {
    /// A template from its text; `file` is where it is from, for messages.
    pub fn new(file: &str, source: &str) -> ChatTemplate {
        ChatTemplate { file: file.to_string(), source: without_generation_blocks(source) }
    }

    /// The template under `chat_template` in `tokenizer_config.json`: a text, or a list of
    /// `{name, template}` of which `default` is taken.
    pub(crate) fn from_json(file: &str, value: &Value) -> Result<Option<ChatTemplate>, CheckpointError> {
        let source = match value {
            Value::Null => return Ok(None),
            Value::String(source) => Some(source.as_str()),
            Value::Array(named) => {
                let default = named.iter().find(|entry| entry["name"] == "default");
                default.or(named.first()).and_then(|entry| entry["template"].as_str())
            }
            _ => None,
        };
        source.map(|source| Some(ChatTemplate::new(file, source))).ok_or_else(|| {
            CheckpointError::ChatTemplate {
                file: file.to_string(),
                problem: "it is neither a text nor a list of named templates".to_string(),
            }
        })
    }

    /// Renders a conversation; see [`Tokenizer::apply_chat_template`](crate::tokenizer::Tokenizer::apply_chat_template).
    ///
    /// # Errors
    /// If the template does not parse, fails, or refuses the conversation by `raise_exception`.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<String, CheckpointError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| json!({"role": message.role, "content": message.content}))
            .collect();
        let conversation =
            Conversation { messages: &messages, add_generation_prompt, ..Conversation::default() };
        self.render_conversation(&conversation, bos_token, eos_token)
    }

    /// Renders a conversation of which the template is told everything that transformers would tell it.
    ///
    /// # Errors
    /// As [`Self::render`]; and if what it renders takes more memory than a conversation can need.
    pub fn render_conversation(
        &self,
        conversation: &Conversation<'_>,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<String, CheckpointError> {
        let failed = |error: Error| CheckpointError::ChatTemplate {
            file: self.file.clone(),
            problem: described(&error),
        };
        let mut context = BTreeMap::new();
        for (name, value) in conversation.variables {
            context.insert(name.as_str(), minijinja::Value::from(Serde(value)));
        }
        // As transformers: `None` where there are none, which is not the same as undefined.
        let tools = (!conversation.tools.is_empty()).then_some(conversation.tools);
        context.insert("tools", minijinja::Value::from(Serde(tools)));
        context.insert("documents", minijinja::Value::from(()));
        context.insert("messages", minijinja::Value::from(Serde(conversation.messages)));
        context.insert("add_generation_prompt", conversation.add_generation_prompt.into());
        context.insert("bos_token", bos_token.unwrap_or_default().into());
        context.insert("eos_token", eos_token.unwrap_or_default().into());
        let syntax = syntax().map_err(failed)?;
        template_limits::render(environment(syntax.clone()), syntax, &self.source, context).map_err(failed)
    }
}

/// Jinja with transformers' settings: blocks take their line with them, no escaping.
fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// What templates use besides Jinja itself. Python's methods are added with the limits.
fn environment(syntax: SyntaxConfig) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
    });
    environment.add_function("strftime_now", |format: String| {
        crate::strftime::strftime_now(&format)
            .map_err(|problem| Error::new(ErrorKind::InvalidOperation, problem))
    });
    environment.add_filter("tojson", to_json);
    environment
}

/// Marks the errors that are the template's own words.
const REFUSED: &str = "refused by the template: ";

/// The error in one line.
fn described(error: &Error) -> String {
    let detail = error.detail().unwrap_or_default();
    if detail.starts_with(REFUSED) {
        return format!("the conversation is {}", shown(detail));
    }
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    shown(&format!("{line}{error}"))
}

/// `tojson` as `json.dumps(value, ensure_ascii=False, indent=indent)` in Python, which models were trained on.
fn to_json(value: minijinja::Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options do not change what a template of a plain conversation writes.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) if width <= 64 => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        Some(width) => {
            let problem = format!("tojson with an indent of {width}");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonJson)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(out).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// JSON with a space after each comma and colon.
struct PythonJson;

impl Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Replaces `{% generation %}` blocks, which mark what training is to learn and print nothing, by blocks that are always taken.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start], &rest[start..start + length]);
        let word = tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(before);
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, prompt: bool) -> Result<String, CheckpointError> {
        let messages =
            [ChatMessage::new("system", "Be brief."), ChatMessage::new("user", " Hello <b>\"you\"</b> ")];
        ChatTemplate::new("tokenizer_config.json", source).render(
            &messages,
            prompt,
            Some("<s>"),
            Some("</s>"),
        )
    }

    #[test]
    fn chatml_as_transformers_renders_it() {
        let source = "{% for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
        let turns =
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <b>\"you\"</b><|im_end|>\n";
        assert_eq!(render(source, false).unwrap(), turns);
        assert_eq!(render(source, true).unwrap(), format!("{turns}<|im_start|>assistant\n"));
    }

    #[test]
    fn llama_2s_template_uses_python_methods_and_slices() {
        let source = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";
        assert_eq!(
            render(source, true).unwrap(),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hello <b>\"you\"</b> [/INST]"
        );
    }

    #[test]
    fn the_template_can_refuse() {
        let error = render("{{ raise_exception('System role not supported') }}", true).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("refused by the template: System role not supported"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_broken_template_names_its_line() {
        let error = render("fine\n{% if %}", true).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn an_endless_template_ends() {
        let source =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a %}{% endfor %}{% endfor %}";
        assert!(render(source, true).is_err());
    }

    #[test]
    fn tojson_is_pythons() {
        assert_eq!(
            render("{{ messages[1] | tojson }}", false).unwrap(),
            r#"{"role": "user", "content": " Hello <b>\"you\"</b> "}"#
        );
        assert_eq!(render("{{ [1, 'é'] | tojson(indent=2) }}", false).unwrap(), "[\n  1,\n  \"é\"\n]");
    }

    #[test]
    fn generation_blocks_print_their_contents() {
        let source = "a{%- generation -%} b {%- endgeneration -%}c{% break_off";
        let changed = without_generation_blocks(source);
        assert_eq!(changed, "a{%- if true -%} b {%- endif -%}c{% break_off");
    }

    #[test]
    fn strftime_now_gives_a_date() {
        let date = render("{{ strftime_now('%d %b %Y') }}", false).unwrap();
        assert_eq!(date.split(' ').count(), 3, "{date}");
    }
}
