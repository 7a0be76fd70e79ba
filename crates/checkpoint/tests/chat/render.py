"""Renders every template of templates/ with every conversation, as transformers does, into rendered.json.

    python render.py            # with the versions of tests/interop/requirements.txt

The templates are written for these tests: each makes the format of the model that it is named after, with the
Jinja that the published one uses. What a template refuses is recorded as the message it refuses it with.
"""

import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
TOKENS = {
    "gemma": ("<bos>", "<eos>"),
    "llama_3": ("<|begin_of_text|>", "<|eot_id|>"),
    "phi_3": ("<s>", "<|endoftext|>"),
    "qwen_2_5": ("", "<|im_end|>"),
    "qwen_3": ("", "<|im_end|>"),
}


def render(template, name, conversation, tools, add_generation_prompt):
    bos, eos = TOKENS.get(name, ("<s>", "</s>"))
    try:
        rendered, _ = render_jinja_template(
            conversations=[conversation["messages"]],
            tools=tools if conversation.get("tools") else None,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=eos,
            **conversation.get("variables", {}),
        )
        return {"text": rendered[0]}
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)}


def main():
    conversations = json.loads((HERE / "conversations.json").read_text())
    tools = json.loads((HERE / "tools.json").read_text())
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        for name, conversation in conversations.items():
            for prompt in (False, True):
                result = render(path.read_text(), path.stem, conversation, tools, prompt)
                bos, eos = TOKENS.get(path.stem, ("<s>", "</s>"))
                cases.append(
                    {
                        "template": path.stem,
                        "conversation": name,
                        "add_generation_prompt": prompt,
                        "bos_token": bos,
                        "eos_token": eos,
                        **result,
                    }
                )
    versions = f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
    report = {"rendered_by": versions, "cases": cases}
    (HERE / "rendered.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    print(versions, len(cases), "cases,", sum("refused" in case for case in cases), "refused")


main()
