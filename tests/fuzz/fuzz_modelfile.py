"""Fuzz Modelfiles, and Go templates on their way to Jinja: `python tests/fuzz/fuzz_modelfile.py -runs=100000`."""

import contextlib
import sys
from pathlib import Path

import jinja2
import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.errors import KvantError, ModelfileError
from kvant.hub import gotemplate, modelfile

SEEDS = (
    b'FROM a\nPARAMETER temperature 0.5\nPARAMETER stop "x"\nSYSTEM """hi\nthere"""\nMESSAGE user hi\nLICENSE "M"\n',
    b'from "a b"\r\n# note\nADAPTER x\nTEMPLATE """{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}"""\n',
    b"{{- if .System }}system\n{{ .System }}\n{{ end }}{{ if .Prompt }}{{ .Prompt }}{{ end }}{{ .Response }}",
    b"{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 }}"
    b'{{ if and (eq .Role "user" "x") (not .Content) }}`a`{{ else if $last }}{{ .Content }}{{ else }}b{{ end }}{{end}}',
)
JINJA = jinja2.Environment()


def exercise(path: Path) -> None:
    """Read a text as a template and as a Modelfile: a translation is Jinja, and what is written reads the same."""
    text = path.read_bytes().decode("utf-8", "replace")
    if gotemplate.is_go_template(text):
        with contextlib.suppress(ModelfileError):
            JINJA.parse(gotemplate.jinja_of(text))
    found = modelfile.parse_modelfile(text)
    try:
        written = modelfile.write_modelfile(found)
    except KvantError:
        return  # a text that the language cannot say
    assert modelfile.parse_modelfile(written) == msgspec.structs.replace(found, ignored=()), written


if __name__ == "__main__":
    fuzzing.instrument(gotemplate, modelfile)
    fuzzing.run(exercise, SEEDS)
