"""`builder build`, `template`, `shell`, `history`: make layers and templates, and look into them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from builder import build as building
from builder import console, sandbox
from builder.build import Built, Node, Template
from builder.commands.common import beside, json_option, locked, project_folder, recipe_argument, variant_option
from builder.commands.template_file import template_file
from builder.errors import UsageError
from builder.lock.model import Lock
from builder.pack import read_manifest
from builder.recipe.model import Recipe
from builder.sandbox.spec import Spec
from builder.sandbox.userns import become_root
from builder.stage import KINDS
from builder.store import Store, default_root, fetch
from builder.store.tools import tool_blobs

output_option = click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for the template; artifacts/ otherwise."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(("host", "docker")),
    default="host",
    show_default=True,
    envvar="BUILDER_ENGINE",
    show_envvar=True,
    help="docker: run the builder in one container, for machines where only Docker is allowed.",
)


@click.command()
@recipe_argument
@variant_option
@output_option
@engine_option
@click.option("--explain", is_flag=True, help="Say for each stage why it is cached or rebuilt.")
@click.option("--dry-run", is_flag=True, help="Build nothing; with what --explain says.")
@json_option
def build(
    recipe: Path,
    variant: str | None,
    output: Path | None,
    engine: str,
    explain: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Build the template of RECIPE from its lock, offline.

    \b
    Examples:
      builder build recipes/smoke
      builder build recipes/vllm-blackwell --variant nvidia --explain
      builder build recipes/smoke --engine docker
    """
    if engine == "docker":
        flags = [word for word, given in (("--explain", explain), ("--dry-run", dry_run), ("--json", as_json)) if given]
        return _in_docker(locked(recipe, variant)[0], output, flags)
    become_root()
    loaded, lock = locked(recipe, variant)
    nodes = building.plan(loaded, lock, KINDS)
    store = Store(default_root())
    if dry_run:
        rows = [(node.stage.name, reason) for node, reason in building.outlook(loaded, nodes, store)]
        if as_json:
            console.print_json([{"stage": name, "reason": reason} for name, reason in rows])
        else:
            console.print_table(("stage", "why"), rows)
        return 0
    _build(loaded, lock, nodes, store, output, explain, as_json)
    return 0


@click.command()
@recipe_argument
@variant_option
@output_option
@engine_option
@json_option
def template(recipe: Path, variant: str | None, output: Path | None, engine: str, as_json: bool) -> int:
    """Fetch what is missing and build the template of RECIPE: what `make template` runs.

    \b
    Example:
      builder template recipes/vllm-blackwell
    """
    if engine == "host":
        become_root()
    loaded, lock = locked(recipe, variant)
    nodes = building.plan(loaded, lock, KINDS)
    store = Store(default_root())
    missing = [blob for blob in (*building.blobs(nodes), *tool_blobs()) if not store.has(blob)]
    if missing:
        fetch(store, missing, progress=console.progress(as_json))
    if engine == "docker":
        store.close()
        return _in_docker(loaded, output, ["--json"] if as_json else [])
    _build(loaded, lock, nodes, store, output, False, as_json)
    return 0


def _in_docker(recipe: Recipe, output: Path | None, flags: Sequence[str]) -> int:
    """Run `builder build` in a container over this machine's store; its exit status."""
    from builder.sandbox import docker

    store, folder = Store(default_root()).folder(), (output or beside(recipe, "artifacts")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    words = ["build", str(recipe.directory.resolve()), "--output", str(folder), "--engine", "host", *flags]
    if recipe.variant:
        words += ["--variant", recipe.variant]
    job = docker.Job(words, (store, folder), (project_folder(recipe),), {"BUILDER_STORE": str(store)})
    return docker.run(job, out=_pass_on(sys.stdout), err=_pass_on(sys.stderr))


def _pass_on(stream: TextIO) -> Callable[[bytes], None]:
    def write(piece: bytes) -> None:
        stream.buffer.write(piece)
        stream.flush()

    return write


def _build(
    recipe: Recipe,
    lock: Lock,
    nodes: Sequence[Node],
    store: Store,
    output: Path | None,
    explain: bool,
    as_json: bool,
) -> None:
    progress = console.progress(as_json)
    folder = output or beside(recipe, "artifacts")
    made = building.current(recipe, lock, nodes, store, folder)
    built: Sequence[Built] = ()
    if made is None:
        made, built = building.make(recipe, lock, nodes, store, folder, progress)
    elif explain:
        built = building.build(recipe, nodes, store, progress)
    if explain and not as_json:
        console.print_table(("stage", "why"), [(stage.node.stage.name, stage.reason) for stage in built])
    if as_json:
        console.print_json(_result(made, built))
    else:
        state = "" if made.fresh else " (unchanged)"
        click.echo(f"{made.path}  {console.human(made.size)}{state}\nsha256:{made.sha256}")


def _result(made: Template, built: Sequence[Built]) -> dict[str, Any]:
    stages = [
        {
            "name": stage.node.stage.name,
            "key": stage.key,
            "digest": stage.layer.digest,
            "reason": stage.reason,
            "seconds": round(stage.seconds, 2),
        }
        for stage in built
    ]
    return {
        "path": str(made.path),
        "sha256": made.sha256,
        "size": made.size,
        "fresh": made.fresh,
        "pack_seconds": round(made.seconds, 2),
        "stages": stages,
    }


@click.command()
@click.argument("recipe", metavar="RECIPE[:STAGE]")
@click.argument("command", nargs=-1)
@variant_option
def shell(recipe: str, command: tuple[str, ...], variant: str | None) -> int:
    """Run a shell, or COMMAND, over the layers of RECIPE up to STAGE; what it changes is thrown away.

    The exit status is the command's own.

    \b
    Examples:
      builder shell recipes/smoke
      builder shell recipes/vllm-blackwell:wheels -- /opt/vllm/bin/python -V
    """
    become_root()
    path, _, stage = (recipe, "", "") if Path(recipe).exists() else recipe.rpartition(":")
    loaded, lock = locked(Path(path), variant)
    nodes = building.plan(loaded, lock, KINDS)
    names = [node.stage.name for node in nodes]
    if stage and stage not in names:
        raise UsageError(f"no stage {stage!r} is built", where=path, hint=f"take one of {', '.join(names)}")
    store = Store(default_root())
    wanted = nodes[: names.index(stage) + 1] if stage else nodes
    built = building.build(loaded, wanted, store, console.progress(False))
    env = {"TERM": "xterm-256color"}
    spec = Spec(name="shell", argv=command or ("/bin/bash", "-l"), env=env, interactive=True)
    with building.over(built, store) as placed:
        return sandbox.attend(placed(spec))


@click.command()
@click.argument("template", type=click.Path(path_type=Path))
@json_option
def history(template: Path, as_json: bool) -> None:
    """Show how TEMPLATE was made: its stages with sizes and digests, lowest first.

    \b
    Example:
      builder history artifacts/smoke_1_amd64.tar.zst
    """
    manifest = read_manifest(template_file(template))
    if as_json:
        console.print_json({name: manifest[name] for name in ("name", "version", "variant", "stages", "skipped")})
        return
    rows = [
        (stage["name"], stage["kind"], console.human(stage["size"]), stage["digest"][:12])
        for stage in manifest["stages"]
    ]
    rows += [(name, "skipped", "", reason) for name, reason in sorted(manifest["skipped"].items())]
    console.print_table(("stage", "kind", "size", "digest"), rows, right=("size",))
