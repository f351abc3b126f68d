"""Templates of requests: hostile ones are stopped, good ones give what transformers' way of rendering gives."""

import pytest

from kvant.runtime.template import render as jinja_render
from kvant.serve.api.failure import ApiError
from kvant.serve.api.templates import MAX_TEMPLATE_CHARACTERS, render
from served import TOOLS_TEMPLATE

HI = [{"role": "user", "content": "Hi <b>&amp;"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NAMESPACE = (
    "{%- set ns = namespace(found=false) -%}\n"
    "{%- for m in messages -%}\n  {%- if m.role == 'system' -%}{%- set ns.found = true -%}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{{ bos_token }}{% if not ns.found %}\nNone{% endif %}\n"
    "{% for m in messages if m.role != 'system' %}\n    {{ m.content | trim | upper }}:{{ loop.index }}\n{% endfor %}\n"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye <>&\"'"},
]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, NAMESPACE, TOOLS_TEMPLATE])
@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[:2]])
def test_equal_to_jinja(template: str, messages: list[dict[str, str]]) -> None:
    ours = render(template, messages, bos_token="<s>", eos_token="</s>")

    assert ours == jinja_render(template, messages, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for m in messages %}{{ m.keys.__globals__ }}{% endfor %}",
    ],
)
def test_no_way_to_pythons_objects(template: str) -> None:
    try:
        text = render(template, HI)
    except ApiError as error:
        text = str(error)

    assert "subclass" not in text.replace("__subclasses__", "")
    assert "uid=" not in text
    assert "<class" not in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages %}{{ m.content }",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('not like this') }}",
        "{{ messages[0].content.nothing.there }}",
        "x" * (MAX_TEMPLATE_CHARACTERS + 1),
    ],
)
def test_a_template_that_does_too_much_or_is_wrong_is_a_clear_error(template: str) -> None:
    with pytest.raises(ApiError, match=r"^template: "):
        render(template, HI)


def test_what_a_template_refuses_is_told() -> None:
    with pytest.raises(ApiError, match="roles must alternate"):
        render(LLAMA2, [{"role": "assistant", "content": "x"}])


def test_gos_language_is_translated_where_it_is_simple() -> None:
    go = "{{ if .System }}<<{{ .System }}>>{{ end }}[{{ .Prompt }}]{{ .Response }}"
    assert render(go, [{"role": "system", "content": "Be kind."}, *HI]) == "<<Be kind.>>[Hi <b>&amp;]"


def test_gos_language_beyond_that_is_refused() -> None:
    with pytest.raises(ApiError, match=r"model.s own"):
        render("{{ range .Tools }}{{ .Function }}{{ end }}", HI)
