"""Write tests/golden/chat_templates.json: what transformers' `apply_chat_template` makes of conversations.

Needs transformers, which the tests do not: `pip install transformers`, then `python tools/template_goldens.py`. The
templates are written here, in the manner of the families that they are named after.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat_templates.json"
BOS, EOS = "<s>", "</s>"
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "inst": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
        "{% for message in rest %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + (system + '\n\n' if loop.first and system else '') + message['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "headers": (
        "{{- bos_token }}\n{%- for message in messages %}\n"
        "    {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message.content | trim + '<|eot|>' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|end|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "turns": (
        "{{ bos_token }}{%- set ns = namespace(prefix='') -%}\n"
        "{%- if messages[0]['role'] == 'system' -%}\n{%- set ns.prefix = messages[0]['content'] + '\n\n' -%}\n"
        "{%- set loop_messages = messages[1:] -%}\n{%- else -%}\n{%- set loop_messages = messages -%}\n{%- endif -%}\n"
        "{%- for message in loop_messages -%}\n"
        "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
        "{{ '<turn>' + role + '\n' + (ns.prefix if loop.first else '') }}{{ message['content'] | trim }}"
        "{{ '</turn>\n' }}\n"
        "{%- endfor -%}\n{%- if add_generation_prompt -%}\n{{ '<turn>model\n' }}\n{%- endif -%}\n"
    ),
    "thinking": (
        "{%- for message in messages %}\n"
        "{%- if message.role == 'assistant' %}\n"
        "{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
        "{{- '<a>' ~ content ~ '</a>' }}\n{%- elif message.role == 'user' or loop.first %}\n"
        "{{- '<' ~ message.role[0] ~ '>' ~ message.content ~ '</' ~ message.role[0] ~ '>' }}\n"
        "{%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<a>' }}{%- if enable_thinking is defined and not enable_thinking %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
    ),
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is <b>5 & 6</b>? \n"}],
    [
        {"role": "system", "content": "Ты — помощник 🤖"}, {"role": "user", "content": "日本語 \"x\" 'y' \\n {{ z }}"},
        {"role": "assistant", "content": "<think>hm</think>\n\nOk."}, {"role": "user", "content": "{% raw %}\n\nEnd"},
    ],
]  # fmt: skip


def main() -> None:
    """Render every pair and write them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            rendered, _ = render_jinja_template(
                conversations=[messages], chat_template=template, add_generation_prompt=True, bos_token=BOS,
                eos_token=EOS,
            )  # fmt: skip
            cases.append({"template": name, "messages": messages, "prompt": rendered[0]})
    document = {
        "written_by": f"tools/template_goldens.py with transformers {version('transformers')}", "bos_token": BOS,
        "eos_token": EOS, "templates": TEMPLATES, "cases": cases,
    }  # fmt: skip
    OUT.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{OUT}: {len(cases)} cases")


if __name__ == "__main__":
    main()
