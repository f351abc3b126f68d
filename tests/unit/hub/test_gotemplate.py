"""Go templates: what they render to after translation, against the texts that Ollama's rules give by hand."""

import pytest

from kvant.errors import ModelfileError
from kvant.hub.gotemplate import is_go_template, jinja_of
from kvant.runtime.template import _render_here

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
MORE = {"role": "user", "content": 'Why "so"?'}

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
LLAMA3 = """{{- if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>

{{ .Content }}<|eot_id|>{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>

{{ .Content }}{{ if not $last }}<|eot_id|>{{ end }}
{{- end }}
{{- end }}"""


def rendered(template: str, *messages: dict[str, str]) -> str:
    return _render_here(jinja_of(template), {"messages": list(messages), "add_generation_prompt": True})


def test_one_exchange_is_repeated_and_the_last_one_ends_at_the_response() -> None:
    assert rendered(CHATML, SYSTEM, ASK, ANSWER, MORE) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
        '<|im_start|>user\nWhy "so"?<|im_end|>\n<|im_start|>assistant\n'
    )


def test_a_template_over_messages() -> None:
    assert rendered(LLAMA3, SYSTEM, ASK, ANSWER, MORE) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        '<|start_header_id|>user<|end_header_id|>\n\nWhy "so"?<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_template_without_response_is_followed_by_it() -> None:
    assert rendered("[INST] {{ .Prompt }} [/INST]", ASK, ANSWER, MORE) == (
        '[INST] Hi [/INST]Hello[INST] Why "so"? [/INST]'
    )


@pytest.mark.parametrize("text", ["{{ x }} {% raw %} '\"\\ \n\t", "}}-{{", "🙂 ∀ \x7f"])
def test_literal_text_comes_out_as_it_is(text: str) -> None:
    template = "A" + text.replace("{{", "").replace("}}", "") + "{{ .Prompt }}"
    assert rendered(template, ASK) == template.replace("{{ .Prompt }}", "Hi")


def test_and_or_and_several_values() -> None:
    template = '{{ range .Messages }}{{ if and (ne .Role "system") (or .Content .Role) }}{{ .Role }}{{ end }}{{ end }}'
    assert rendered(template, SYSTEM, ASK) == "user"
    either = '{{ range .Messages }}{{ if eq .Role "user" "system" }}+{{ else }}-{{ end }}{{ end }}'
    assert rendered(either, SYSTEM, ASK, ANSWER) == "++-"


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Tools }}", "{{ range .Messages }}{{ .ToolCalls }}{{ end }}", "{{ if .System }}", "{{ end }}",
        "{{ .System | upper }}", "{{ json .Prompt }}", "{{ range .Tools }}{{ end }}", "{{ $x := 1 }}",
        "{{ .Prompt", "{{ if }}{{ end }}", "{{ range .Messages }}{{ range .Messages }}{{ end }}{{ end }}",
        "{{ if eq .System }}{{ end }}", "{{ .Suffix }}", "{{ (((( }}",
        "{{ if (" + "(" * 100 + ".System" + ")" * 101 + " }}{{ end }}", "{{ if .System }}{{ else }}{{ else }}{{ end }}",
        "{{ if .System }}a{{ else if }}b{{ end }}", "{{ if .System }}a{{ else if }}b{{ else if .Prompt }}c{{ end }}",
        "{{ if .System }}a{{ else }}b{{ else if .Prompt }}c{{ end }}", "{{ if .System }}a{{ else .Prompt }}b{{ end }}",
        "{{ if .System }}a{{ end .Prompt }}b{{ end }}", "{{ if .System }}a{{ else with .Prompt }}b{{ end }}",
        "{{ range .Messages }}a{{ end x }}b{{ end }}", "{{ if }}{{ else if .System }}a{{ end }}",
        "{{ if .System }}" * 100, '{{ template "x" }}', "{{ .__class__ }}", "{{ messages.__class__ }}",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_a_remedy(template: str) -> None:
    with pytest.raises(ModelfileError, match="Leave TEMPLATE out"):
        jinja_of(template)


def test_the_languages_are_told_apart() -> None:
    assert is_go_template(CHATML)
    assert is_go_template(LLAMA3)
    assert is_go_template("{{ .Prompt }}")
    assert not is_go_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    assert not is_go_template("{{ messages[0].content }}")


@pytest.mark.parametrize(
    ("text", "is_go"),
    [
        ("{{" * 9, False), ("{{ .Prompt }}" + "{{" * 9, True), ("{{ a }}{{- if .System }}", True), ("{{ $i", True),
        ("{{ a % b }}", False), (".System", False), ("{{ '{{' ~ a }} .System", False),
    ],
)  # fmt: skip
def test_actions_are_found_by_reading_once(text: str, is_go: bool) -> None:
    assert is_go_template(text) == is_go


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ .Prompt }}" + "{{" * 9, "an action is never closed"),
        ("{{ .Prompt }}{{" + " " * 9, "an action is never closed"),
        ('{{ if eq .Prompt "a }}x{{ end }}', "is never closed"),
        ("{{ if eq .Prompt `a }}x{{ end }}", "is never closed"),
        ("{{ if or" + " .Prompt" * 65 + " }}x{{ end }}", "or with 65 values"),
        ("x" * (1 << 16) + "{{ .Prompt }}", "above the limit of 65536"),
    ],
)
def test_what_is_not_whole_or_too_long_is_told(template: str, said: str) -> None:
    with pytest.raises(ModelfileError, match=said):
        jinja_of(template)


def test_the_sides_of_actions_take_white_space_as_in_go() -> None:
    template = "a {{- .Prompt -}} b {{.Prompt}} c {{-1 }}"
    with pytest.raises(ModelfileError, match="'-1' is not understood"):
        jinja_of(template)
    assert rendered("a {{- .Prompt -}} b {{.Prompt}} c{{- /* - */ -}} d", ASK) == "aHib Hi cd"
