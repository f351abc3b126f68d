"""Templates of requests: hostile ones are stopped, good ones give what transformers' way of rendering gives."""

from collections.abc import Iterator
from functools import partial

import pytest

from kvant.errors import ApiError
from kvant.generate import templates
from kvant.generate.templates import MAX_TEMPLATE_CHARACTERS
from kvant.runtime.bounded import Bounded
from kvant.runtime.template import render as jinja_render
from served import TOOLS_TEMPLATE

Render = partial[str]

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


@pytest.fixture(scope="module")
def render() -> Iterator[Render]:
    bounded = Bounded(cpu_s=1)
    yield partial(templates.render, bounded)
    bounded.close()


@pytest.mark.parametrize("template", [CHATML, LLAMA2, NAMESPACE, TOOLS_TEMPLATE])
@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[:2]])
def test_equal_to_jinja(render: Render, template: str, messages: list[dict[str, str]]) -> None:
    ours = render(template, messages, bos_token="<s>", eos_token="</s>")

    assert ours == jinja_render(template, messages, bos_token="<s>", eos_token="</s>")


TOJSON = (
    "{% for m in messages %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{{ m | tojson(indent=4) }}\n"
    "{{ [m.content, none, true, 1.5] | tojson(separators=(',', ':')) }}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, NAMESPACE, TOOLS_TEMPLATE, TOJSON])
def test_equal_to_transformers(render: Render, template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    talk = [*TALK[:3], {"role": "user", "content": "<b> & 'ö' \"\u2028\n"}]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    rendered, _ = render_jinja_template(
        conversations=[talk], chat_template=template, add_generation_prompt=True, **special
    )
    assert [render(template, talk, **special)] == rendered


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for m in messages %}{{ m.keys.__globals__ }}{% endfor %}",
    ],
)
def test_no_way_to_pythons_objects(render: Render, template: str) -> None:
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
        "{{ raise_exception('') }}",
        "{{ raise_exception() }}",
        "{{ strftime_now(5) }}",
        "{{ strftime_now() }}",
        "{{ messages[0].content.nothing.there }}",
        "x" * (MAX_TEMPLATE_CHARACTERS + 1),
    ],
)
def test_a_template_that_does_too_much_or_is_wrong_is_a_clear_error(render: Render, template: str) -> None:
    with pytest.raises(ApiError, match=r"^template: (?!_|takes over)"):
        render(template, HI)


def test_what_a_template_refuses_is_told(render: Render) -> None:
    with pytest.raises(ApiError, match="roles must alternate"):
        render(LLAMA2, [{"role": "assistant", "content": "x"}])


def test_gos_language_is_translated_where_it_is_simple(render: Render) -> None:
    go = "{{ if .System }}<<{{ .System }}>>{{ end }}[{{ .Prompt }}]{{ .Response }}"
    assert render(go, [{"role": "system", "content": "Be kind."}, *HI]) == "<<Be kind.>>[Hi <b>&amp;]"


def test_gos_language_beyond_that_is_refused(render: Render) -> None:
    with pytest.raises(ApiError, match=r"model.s own"):
        render("{{ range .Tools }}{{ .Function }}{{ end }}", HI)


N = 20_000
DEEP = {
    "signs": "{{ " + "-" * N + "1 }}",
    "spaced signs": "{{ " + "- " * N + "1 }}",
    "nots": "{{ " + "not " * (N // 2) + "1 }}",
    "brackets": "{{ " + "(" * N + "1" + ")" * N + " }}",
    "lists": "{{ " + "[" * N + "]" * N + " }}",
    "mappings": "{{ " + "{1:" * (N // 2) + "1" + "}" * (N // 2) + " }}",
    "attributes": "{{ messages" + ".a" * N + " }}",
    "items": "{{ messages" + "[0]" * N + " }}",
    "slices": "{{ messages" + "[:]" * 4000 + " }}",
    "calls": "{{ messages" + "()" * N + " }}",
    "filters": "{{ messages" + "|e" * N + " }}",
    "tests": "{{ 1" + " is odd" * 9000 + " }}",
    "sums": "{{ 1" + "+1" * N + " }}",
    "joins": "{{ 1" + "~1" * N + " }}",
    "powers": "{{ 1" + "**1" * N + " }}",
    "comparisons": "{{ 1" + "<1" * N + " }}",
    "choices": "{{ 1" + " if 1 else 1" * 5000 + " }}",
    "ands": "{{ 1" + " and 1" * 10_000 + " }}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "elifs": "{% if 1 %}" + "{% elif 1 %}" * 5000 + "{% endif %}",
    "loops": "{% for a in b %}" * 2000 + "{% endfor %}" * 2000,
    "sets": "{% set a %}" * 2000 + "{% endset %}" * 2000,
    "Go's brackets": "{{ .Prompt }}{{ if " + "(" * N + ".Prompt" + ")" * N + " }}{{ end }}",
    "Go's blocks": "{{ .Prompt }}" + "{{ if .Prompt }}" * 1500 + "{{ end }}" * 1500,
    "Go's ors": "{{ if or" + " .Prompt" * 8000 + " }}{{ end }}",
    "a text that doubles": "{% set x = 'aaaaaaaa' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "a text that grows": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
}


@pytest.mark.parametrize("template", DEEP.values(), ids=DEEP)
def test_no_depth_or_growth_ends_the_gateway_or_the_next_request(render: Render, template: str) -> None:
    assert len(template) <= MAX_TEMPLATE_CHARACTERS
    try:
        render(template, HI)
    except ApiError as error:
        assert str(error).startswith("template: ")  # noqa: PT017

    assert render("{{ messages[0].content }}", HI) == HI[0]["content"]
