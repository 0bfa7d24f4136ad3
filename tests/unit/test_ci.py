"""The jobs in docs/ci.md are YAML, their scripts are shell, and the commands in them are ours."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from builder.cli import cli

SCRIPT = Path(__file__).parents[2] / "scripts/ci-cache"
JOBS = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs/ci.md").read_text(), re.DOTALL)


def scripts(job: dict[str, Any]) -> list[str]:
    steps = job["jobs"]["template"]["steps"] if "jobs" in job else []
    return [step["run"] for step in steps if "run" in step] + job.get("template", {}).get("script", [])


@pytest.mark.parametrize("text", JOBS, ids=["github", "gitlab"])
def test_the_jobs_are_sound(text: str) -> None:
    lines = scripts(yaml.safe_load(text))
    subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=True)
    run = "\n".join(line.replace('scripts/ci-cache .cache "$RECIPE"', SCRIPT.read_text()) for line in lines)
    called = re.findall(r"builder\"? ((?:store )?\w+)", run)
    assert sorted(called) == ["key", "store export", "store import", "template"]
    for words in called:
        command: click.Command | None = cli
        for word in words.split():
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command is not None
