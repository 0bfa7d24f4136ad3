"""`builder doctor`: what this machine lacks for a build, and the command that mends it."""

from __future__ import annotations

import dataclasses
import sys

import click

from builder import console
from builder.commands.common import json_option
from builder.sandbox import probes
from builder.store import default_root


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Try all that a build needs of this machine, and say what mends the rest.

    Exits 1 when something that the current user needs does not work.

    \b
    Examples:
      builder doctor
      builder doctor --json
    """
    found = list(probes.checks(default_root()))
    if as_json:
        console.print_json([dataclasses.asdict(check) for check in found])
    else:
        console.print_table(
            ("check", "", "found", "what mends it"), [(c.name, c.status, c.found, c.mend) for c in found]
        )
    if any(check.status == "fail" for check in found):
        sys.exit(1)
