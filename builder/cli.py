"""The command line: groups, errors and exit codes. Commands live in `builder.commands`, one module a topic."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from builder import interrupts
from builder.errors import BuilderError

COMMANDS = {
    "lock": "lock",
    "fetch": "fetch",
    "build": "build",
    "template": "build",
    "shell": "build",
    "key": "key",
    "history": "build",
    "diff": "compare",
    "verify": "verify",
    "rebuild-check": "rebuild",
    "push": "push",
    "check": "check",
    "recipe": "recipe",
    "schema": "recipe",
    "export": "recipe",
    "inspect": "inspect",
    "licences": "licences",
    "deploy": "deploy",
    "rollback": "deploy",
    "destroy": "deploy",
    "adopt": "adopt",
    "templates": "deploy",
    "status": "status",
    "logs": "logs",
    "bench": "bench",
    "containers": "containers",
    "models": "models",
    "store": "store",
    "doctor": "doctor",
}
"""Each command and the module of `builder.commands` that holds it; imported only when it is asked for."""

GROUPS = {
    "Make a template": ("lock", "fetch", "build", "template"),
    "Look": (
        "recipe",
        "key",
        "history",
        "diff",
        "verify",
        "rebuild-check",
        "check",
        "shell",
        "schema",
        "export",
        "inspect",
        "licences",
    ),
    "Deploy": (
        "containers",
        "models",
        "push",
        "deploy",
        "rollback",
        "destroy",
        "templates",
        "adopt",
        "status",
        "logs",
        "bench",
    ),
    "House": ("store", "doctor"),
}


class LazyGroup(click.Group):
    """Finds commands by name in `COMMANDS`, so that a command imports what it needs itself and no more."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"builder.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error  # click would write an empty line

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            rows = [
                (name, command.get_short_help_str(70)) for name in names if (command := self.get_command(ctx, name))
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="builder")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the Python traceback of an error.")
def cli() -> None:
    """Build hashed LXC templates from recipes and locks.

    \b
    Example:
      builder template recipes/vllm-blackwell
    """


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _show(error: click.ClickException) -> None:
    """One line with the way to the help; a command without arguments says its help itself."""
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx is not None and "\n" not in message:
        click.echo(f"builder: {message.rstrip('.')}; run `{error.ctx.command_path} --help`", err=True)
    else:
        error.show()


def _speak_utf8() -> None:
    """Start again in UTF-8 mode (PEP 540) where the locale means otherwise: names and texts must not depend on it."""
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> NoReturn:
    """Run the command line: exit 0, 1 for a failure, 2 for a wrong use, 130 when interrupted."""
    _speak_utf8()
    status = _run()
    interrupts.ignore()
    sys.exit(status)


def _run() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) sets it
            signal.signal(number, _terminate)
    gc.set_threshold(100_000)  # an index is many small objects that live to the end
    debug = "--debug" in sys.argv
    try:
        result: Any = cli.main(prog_name="builder", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except BuilderError as error:
        if debug:
            raise
        click.echo(f"builder: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except OSError as error:
        if debug:
            raise
        click.echo(f"builder: {BuilderError(error.strerror or str(error), where=error.filename)}", err=True)
        return BuilderError.exit_code
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        interrupts.ignore()
        click.echo("builder: interrupted", err=True)
        return 130
