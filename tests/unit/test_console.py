"""What reaches the terminal, or does not."""

from __future__ import annotations

import subprocess
import sys

SAYS = """
import sys
from builder import console
progress = console.progress(as_json=False)
with progress.task("work"):
    progress.say("one")
progress.say("two")
print("went on")
"""


def test_work_goes_on_when_nobody_reads_what_it_says() -> None:
    with subprocess.Popen([sys.executable, "-c", SAYS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        out = process.stdout.read() if process.stdout else b""
    assert out == b"went on\n"
