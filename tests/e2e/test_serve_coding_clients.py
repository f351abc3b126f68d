"""Claude Code and Codex CLI, from npm, against a gateway: each runs a tool that the model calls, and gives its answer.

The packages are installed once, below `KVANT_NPM` or a directory of the tests' own; nothing of a user's configuration
is read or written. `KVANT_TRANSCRIPTS` names a directory to leave what each said in.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from calling_model import write_calling_model
from served import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")]

CLAUDE, CODEX = "@anthropic-ai/claude-code@2.1.197", "@openai/codex@0.171.0"
COMMAND, MARK, ANSWER = "echo 4$((2)) > made.txt && cat made.txt", "42", "The tool has run: all done."
CALLS = {
    "Bash": {"command": COMMAND, "description": "Make a file"},
    "exec_command": {"cmd": COMMAND},
}


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of both packages."""
    root = Path(os.environ.get("KVANT_NPM") or tmp_path_factory.mktemp("npm"))
    programs = root / "node_modules" / ".bin"
    if not (programs / "claude").exists() or not (programs / "codex").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(root), CLAUDE, CODEX]
        subprocess.run(install, check=True, timeout=900)
        subprocess.run(["node", "install.cjs"], cwd=root / "node_modules/@anthropic-ai/claude-code", check=True)
    return programs


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_calling_model(root / "caller.gguf", CALLS, ANSWER)
    with served(root, context=65536, parallel=1, threads=2) as running:
        yield running


def _ran(name: str, command: list[str], work: Path, **environment: str) -> str:
    """Run a client in an environment of its own and return what it wrote."""
    home = work / "home"
    project = work / "project"
    home.mkdir(exist_ok=True)
    project.mkdir()
    known = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=project, env=known | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    if "KVANT_TRANSCRIPTS" in os.environ:
        Path(os.environ["KVANT_TRANSCRIPTS"], f"{name}.txt").write_text(f"$ {' '.join(command)}\n{said}")
    assert done.returncode == 0, said
    assert (project / "made.txt").read_text().strip() == MARK
    return said


def test_claude_code_runs_a_tool(npm: Path, gateway: Served, tmp_path: Path) -> None:
    command = [str(npm / "claude"), "-p", "Make a file with the answer.", "--model", "caller", "--allowedTools", "Bash",
               "--output-format", "stream-json", "--verbose"]  # fmt: skip

    said = _ran("claude", command, tmp_path, ANTHROPIC_BASE_URL=gateway.url, ANTHROPIC_AUTH_TOKEN="any", IS_SANDBOX="1",
                CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1")  # fmt: skip

    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    used = [block["name"] for event in events if event["type"] == "assistant" for block in event["message"]["content"]
            if block["type"] == "tool_use"]  # fmt: skip
    assert used == ["Bash"]
    assert events[-1]["result"] == ANSWER


def test_codex_runs_a_tool(npm: Path, gateway: Served, tmp_path: Path) -> None:
    settings = tmp_path / "home" / "codex"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text(
        'model = "caller"\nmodel_provider = "kvant"\n\n[model_providers.kvant]\nname = "kvant"\n'
        f'base_url = "{gateway.url}/v1"\nwire_api = "responses"\n'
    )
    command = [str(npm / "codex"), "exec", "--json", "--skip-git-repo-check",
               "--dangerously-bypass-approvals-and-sandbox", "Make a file with the answer."]  # fmt: skip

    said = _ran("codex", command, tmp_path, CODEX_HOME=str(settings))

    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert [item["aggregated_output"].strip() for item in items if item["type"] == "command_execution"] == [MARK]
    assert [item["text"] for item in items if item["type"] == "agent_message"] == [ANSWER]
