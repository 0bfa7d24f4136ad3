"""From keys to layers: what is in the store is taken, what is not is built, offline, in the sandbox."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from builder import sandbox, tree
from builder.build import explain
from builder.build.plan import EMPTY_STACK, Node, blobs, file_digest, stack_digest
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.progress import Progress
from builder.recipe.model import Recipe
from builder.sandbox.spec import Bind, Limits, Spec
from builder.stage.kind import Context
from builder.store import Draft, Layer, Store
from builder.store.files import guarded
from builder.store.tools import tool

CACHED = "cached"
"""The reason of a stage that was not built."""


@dataclass(frozen=True)
class Built:
    """One stage's layer, and how it came about."""

    node: Node
    key: str
    layer: Layer
    reason: str  # `CACHED`, or why it was built
    seconds: float  # 0.0 when cached


def build(recipe: Recipe, nodes: Sequence[Node], store: Store, progress: Progress) -> tuple[Built, ...]:
    """The layers of `nodes`, lowest first.

    Each is taken from the store when its key is there and its files are as they were captured, and built otherwise.
    Raises BuilderError naming the stage when an input is missing or damaged, or when the stage fails.
    """
    for blob in blobs(nodes):
        store.has(blob)  # marks it as used: gc leaves to later stages what they need
    done: list[Built] = []
    below = EMPTY_STACK
    for node in nodes:
        built = _stage(recipe, node, below, done, store, progress)
        done.append(built)
        below = stack_digest(below, built.layer.digest)
    return tuple(done)


def outlook(recipe: Recipe, nodes: Sequence[Node], store: Store) -> Iterator[tuple[Node, str]]:
    """What `build` would do, without doing it: each node with "cached" or why it would be built."""
    below: str | None = EMPTY_STACK
    rebuilt = ""
    for node in nodes:
        if below is None:
            yield node, f"depends on {rebuilt}: cached only if that comes out as before"
            continue
        layer = store.layer(node.key(below))
        if layer is None:
            yield node, explain.explain(store, recipe.full_name, node.stage.name, node.full_body(below), node.listing)
            below, rebuilt = None, node.stage.name
        else:
            yield node, CACHED
            below = stack_digest(below, layer.digest)


def standing(nodes: Sequence[Node], store: Store) -> list[Layer]:
    """The layers of `nodes` that are in the store, lowest first, up to the first that is not."""
    found: list[Layer] = []
    below = EMPTY_STACK
    for node in nodes:
        layer = store.layer(node.key(below))
        if layer is None:
            break
        found.append(layer)
        below = stack_digest(below, layer.digest)
    return found


def _stage(recipe: Recipe, node: Node, below: str, done: Sequence[Built], store: Store, progress: Progress) -> Built:
    key, body, name = node.key(below), node.full_body(below), node.stage.name
    layer = _sound(store.layer(key), name, store, progress)
    if layer is not None:
        return Built(node, key, layer, CACHED, 0.0)
    reason = explain.explain(store, recipe.full_name, name, body, node.listing)
    started = time.monotonic()
    log = store.folder("tmp", "logs") / f"{recipe.full_name}-{name}.log"
    with progress.task(f"{name}: {reason}"), store.draft(key) as draft, _named(node, store):
        _check_inputs(recipe, node, store)
        lower = [built.layer.tree for built in done]
        window_start = _stamp(draft.scratch / "started")
        with _logged(draft.work.parent / "log", log) as said:
            node.kind.build(_context(recipe, node, lower, draft, store, said, log))
        window = (window_start, _stamp(draft.scratch / "ended"))
        _check_files(node)
        tree.normalise(draft.upper, recipe.source_date_epoch, window)
        index = tree.scan(draft.upper)
        seconds = time.monotonic() - started
        facts = {"recipe": recipe.full_name, "stage": name, "kind": node.kind.name, "body": body}
        layer = draft.commit(index, facts)
        log.unlink(missing_ok=True)
    explain.remember(store, recipe.full_name, name, body, node.listing)
    return Built(node, key, layer, reason, seconds)


def _sound(layer: Layer | None, stage: str, store: Store, progress: Progress) -> Layer | None:
    """`layer` when its files are as they were captured; else None, with the layer dropped and that said."""
    if layer is None or not (changed := layer.changed()):
        return layer
    store.drop_layer(layer)
    progress.say(f"{stage}: layer {layer.key[:12]} was changed on disk ({changed[0]}), dropped; building it again")
    return None


@contextmanager
def _logged(log: Path, kept: Path) -> Iterator[Path]:
    """Where the commands of the block write, for this builder alone; it becomes `kept`, whole, when the block fails."""
    try:
        yield log
    except BuilderError:
        with suppress(FileNotFoundError):
            os.replace(log, kept)
        raise


@contextmanager
def _named(node: Node, store: Store) -> Iterator[None]:
    """Let what fails in the block name the stage, and the locked file by its own name."""
    stage = f"stage {node.stage.name}"
    names = {str(store.path(blob.sha256)): blob.filename for blob in node.inputs.blobs}
    try:
        with guarded(store.root):
            yield
    except BuilderError as error:
        where = "" if error.where in (None, stage) else f": {names.get(error.where, error.where)}"
        raise type(error)(error.what, where=stage + where, hint=error.hint) from error


def _check_files(node: Node) -> None:
    """Refuse a layer of files that were edited after the key was made of them: it would be kept under a wrong name."""
    for name, path in node.inputs.files.items():
        if file_digest(path) != node.body["files"][name]:
            raise BuilderError(
                f"{name} changed while the stage was built",
                where=f"stage {node.stage.name}",
                hint="run the same command again",
            )


def _check_inputs(recipe: Recipe, node: Node, store: Store) -> None:
    variant = f" --variant {recipe.variant}" if recipe.variant else ""
    hint = f"run `builder fetch {shlex.quote(str(recipe.directory))}{variant}`"
    missing = [blob.filename for blob in node.inputs.blobs if not store.has(blob)]
    if missing:
        more = f" and {len(missing) - 1} more locked files are" if missing[1:] else ", a locked file, is"
        raise BuilderError(f"{missing[0]}{more} not in the store", hint=hint)
    with ThreadPoolExecutor() as pool:
        damaged = [
            blob.filename
            for blob, sound in zip(node.inputs.blobs, pool.map(store.sound, node.inputs.blobs), strict=True)
            if not sound
        ]
    if damaged:
        raise BuilderError(f"{damaged[0]} does not have its locked sha256 and was dropped from the store", hint=hint)


def _stamp(path: Path) -> int:
    """Now, in nanoseconds, as the file system's own clock tells it."""
    path.touch()
    return path.stat().st_mtime_ns


def _context(
    recipe: Recipe, node: Node, lower: Sequence[Path], draft: Draft, store: Store, log: Path, kept: Path
) -> Context:
    stage = node.stage
    limits = Limits(memory_mib=stage.memory_mib, seconds=stage.seconds)

    def run(
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        binds: Sequence[Bind] = (),
        host_root: bool = False,
        cwd: str = "/",
    ) -> None:
        spec = Spec(
            name=stage.name,
            argv=tuple(argv),
            layers=() if host_root else tuple(lower),
            upper=None if host_root else draft.upper,
            work=None if host_root else draft.work,
            host_root=host_root,
            binds=tuple(binds),
            env={"SOURCE_DATE_EPOCH": str(recipe.source_date_epoch), **(env or {})},
            cwd=cwd,
            limits=limits,
        )
        sandbox.run(spec, log=log, kept=kept)

    def find(path: str) -> Path | None:
        return tree.resolve([*lower, draft.upper], path)

    def blob_path(blob: Blob) -> Path:
        return store.path(blob.sha256)

    def locked_tool(name: str) -> Path:
        return tool(store, name)

    return Context(
        recipe=recipe,
        stage=stage,
        inputs=node.inputs,
        upper=draft.upper,
        scratch=draft.scratch,
        blob=blob_path,
        tool=locked_tool,
        run=run,
        lower=find,
        epoch=recipe.source_date_epoch,
    )


@contextmanager
def over(built: Sequence[Built], store: Store) -> Iterator[Callable[[Spec], Spec]]:
    """Finished layers with a throw-away upper layer, to run commands over: `builder shell`, `builder lock`.

    Yields a function that fills in `layers`, `upper` and `work` of a Spec.
    """
    with store.scratch() as scratch:
        upper, work = scratch / "upper", scratch / "work"
        upper.mkdir()
        work.mkdir()
        layers = tuple(stage.layer.tree for stage in built)
        yield lambda spec: replace(spec, layers=layers, upper=upper, work=work)
