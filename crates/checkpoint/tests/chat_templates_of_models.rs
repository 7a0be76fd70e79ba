//! The chat formats of well-known models render as transformers renders them: `chat/render.py` recorded it.

use halfbyte_checkpoint::Conversation;
use halfbyte_checkpoint::chat_template::ChatTemplate;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn chat() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat")
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(chat().join(file)).unwrap()).unwrap()
}

#[test]
fn every_model_and_conversation_as_transformers_renders_it() {
    let (rendered, conversations) = (json("rendered.json"), json("conversations.json"));
    let tools = json("tools.json");
    let none = Map::new();
    let (mut templates, mut refused) = (BTreeSet::new(), 0);
    for case in rendered["cases"].as_array().unwrap() {
        let (name, conversation) =
            (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let source = std::fs::read_to_string(chat().join(format!("templates/{name}.jinja"))).unwrap();
        let given = &conversations[conversation];
        let with_tools = given["tools"] == true;
        let conversation_ = Conversation {
            messages: given["messages"].as_array().unwrap(),
            tools: if with_tools { tools.as_array().unwrap() } else { &[] },
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            variables: given["variables"].as_object().unwrap_or(&none),
        };
        let result = ChatTemplate::new("chat_template.jinja", &source).render_conversation(
            &conversation_,
            case["bos_token"].as_str(),
            case["eos_token"].as_str(),
        );
        match case["text"].as_str() {
            Some(text) => assert_eq!(result.unwrap(), text, "{name}, {conversation}"),
            None => {
                let error = result.unwrap_err().to_string();
                // Messages are shortened to a line.
                let wanted: String = case["refused"].as_str().unwrap().chars().take(60).collect();
                assert!(error.contains(&wanted), "{name}, {conversation}: {error}");
                refused += 1;
            }
        }
        templates.insert(name.to_owned());
    }
    let models = ["gemma", "llama_2", "llama_3", "mistral", "phi_3", "qwen_2_5", "qwen_3"];
    assert_eq!(templates.iter().map(String::as_str).collect::<Vec<_>>(), models);
    assert_eq!((rendered["cases"].as_array().unwrap().len(), refused), (154, 16));
}
