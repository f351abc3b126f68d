import json

import pytest

from kvant.errors import LimitError, UnsupportedModelError
from kvant.runtime.template import render

TALK = [{"role": "user", "content": "Hi <b>ü</b>"}, {"role": "assistant", "content": "Yes"}]


def test_a_conversation_and_the_start_of_the_answer() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )

    text = render(template, TALK, bos_token="<s>", eos_token="</s>")

    assert text == "<s><|user|>Hi <b>ü</b></s>\n<|assistant|>Yes</s>\n<|assistant|>"
    assert render(template, TALK, add_generation_prompt=False).endswith("Yes\n")


def test_what_templates_expect_of_transformers() -> None:
    template = (
        "{%- for m in messages -%}\n    {%- if loop.first %}{% continue %}{% endif %}\n    {{- m | tojson }}\n"
        "{%- endfor %}{{ strftime_now('%Y') | length }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}"
    )

    text = render(template, TALK)

    assert text == json.dumps(TALK[1]) + "42"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ (1).__class__.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "{{ undefined.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages['x'] + 1 }}",
    ],
)
def test_what_a_template_must_not_do_or_refuses_itself(template: str) -> None:
    with pytest.raises(UnsupportedModelError, match="chat template: "):
        render(template, TALK)


def test_attributes_of_python_are_nothing_to_a_format_string() -> None:
    assert render("{{ '{0.__class__}'.format(1) }}{{ ''.join.__globals__ }}", TALK) == ""


def test_its_own_words_reach_the_user() -> None:
    with pytest.raises(UnsupportedModelError, match=r"chat template: roles must alternate\. Use another"):
        render("{{ raise_exception('roles must alternate.') }}", TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ 'a' | center(10 ** 10) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_takes_too_much(template: str) -> None:
    with pytest.raises(LimitError, match="chat template: took over"):
        render(template, TALK)


def test_a_template_longer_than_any() -> None:
    with pytest.raises(LimitError, match="exceed the limit"):
        render("x" * (1 << 20) + "x", TALK)


@pytest.mark.slow
def test_endless_work_ends() -> None:
    loop = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(LimitError):
        render(loop, TALK)
