//! Chat templates of the usual kinds render as Python's jinja2 rendered them for `chat_templates.json`.

use halfbyte_checkpoint::ChatMessage;
use halfbyte_checkpoint::chat_template::ChatTemplate;
use serde_json::Value;

#[test]
fn every_case_renders_as_in_python() {
    let recorded: Value = serde_json::from_str(include_str!("chat_templates.json")).unwrap();
    let cases = recorded["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 28);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = recorded["templates"][name].as_str().unwrap();
        let messages: Vec<ChatMessage> = recorded["conversations"][case["conversation"].as_str().unwrap()]
            .as_array()
            .unwrap()
            .iter()
            .map(|turn| ChatMessage::new(turn["role"].as_str().unwrap(), turn["content"].as_str().unwrap()))
            .collect();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let template = ChatTemplate::new("tokenizer_config.json", source);
        let rendered = template.render(&messages, prompt, Some("<s>"), Some("</s>")).unwrap();
        assert_eq!(rendered, case["text"].as_str().unwrap(), "{name}, {}", case["conversation"]);
    }
}
