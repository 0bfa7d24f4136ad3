"""One stage's layer: taken from the store, or built in the sandbox from checked inputs."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import canonical, sandbox, tree
from builder.build import explain
from builder.build.plan import Node, file_digest
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.progress import Progress, Silent, Task
from builder.recipe.model import Recipe
from builder.sandbox.spec import Bind, Limits, Spec
from builder.stage.kind import Context
from builder.store import Draft, Layer, Store
from builder.store.files import guarded
from builder.store.tools import tool

CACHED = "cached"
"""The reason of a stage that was not built."""

_VARIED = ("params", "blobs")
"""What may differ in the keys of a layer and of an earlier one that it takes from."""


@dataclass(frozen=True)
class Built:
    """One stage's layer, and how it came about."""

    node: Node
    key: str
    layer: Layer
    reason: str  # `CACHED`, or why it was built
    seconds: float  # 0.0 when cached


@dataclass(frozen=True)
class Site:
    """Where and for what layers are made."""

    recipe: Recipe
    store: Store
    progress: Progress
    stop: sandbox.Stop


def present(node: Node, lower: Sequence[Built], site: Site) -> Built | None:
    """The layer of `node` over those of `lower` when the store has it, its files as they were captured."""
    key = node.key([built.layer.digest for built in lower])
    layer = site.store.layer(key)
    if layer is None:
        return None
    if changed := layer.changed():
        site.store.drop_layer(layer)
        what = f"layer {key[:12]} was changed on disk ({changed[0]}), dropped; building it again"
        site.progress.say(f"{node.stage.name}: {what}")
        return None
    return Built(node, key, layer, CACHED, 0.0)


def build_layer(node: Node, lower: Sequence[Built], site: Site) -> Built:
    """Make the layer of `node`, whose inputs were checked, over the layers of `lower`.

    Raises BuilderError naming the stage when it fails, StoppedError when the site's switch is pulled meanwhile.
    """
    recipe, store, name = site.recipe, site.store, node.stage.name
    digests = [built.layer.digest for built in lower]
    key, body = node.key(digests), node.full_body(digests)
    reason = explain.explain(store, recipe.full_name, name, body, node.listing)
    started = time.monotonic()
    log = store.folder("tmp", "logs") / f"{recipe.full_name}-{name}.log"
    with site.progress.task(f"{name}: {reason}"), store.draft(key) as draft, named(node, store):
        below = [built.layer.tree for built in lower]
        began = _clocks(draft.scratch / "started")
        with _logged(draft.work.parent / "log", log) as said:
            node.kind.build(_context(site, node, below, draft, said, log, lambda: earlier(node, body, site)))
        windows = tuple(zip(began, _clocks(draft.scratch / "ended"), strict=True))
        _check_files(node)
        tree.normalise(draft.upper, recipe.source_date_epoch, windows, below)
        index = tree.scan(draft.upper, progress=_Watched(site.stop))
        seconds = time.monotonic() - started
        over = [built.key for built in lower]
        facts = {"recipe": recipe.full_name, "stage": name, "kind": node.kind.name, "body": body, "over": over}
        layer = draft.commit(index, facts)
        log.unlink(missing_ok=True)
    explain.remember(store, recipe.full_name, name, body, node.listing)
    return Built(node, key, layer, reason, seconds)


def earlier(node: Node, body: Mapping[str, Any], site: Site) -> Layer | None:
    """The layer of this stage's last build, when only `_VARIED` differ from `body`; its index is sound, its files are
    not looked at."""
    last = explain.last(site.store, site.recipe.full_name, node.stage.name)
    if last is None or any(last.get(name) != value for name, value in body.items() if name not in _VARIED):
        return None
    layer = site.store.layer(canonical.digest(last))
    try:
        return layer if layer is not None and layer.tells(layer.index) else None
    except BuilderError:
        return None


class _Watched(Silent):
    """Shows nothing, and ends the work that reports to it once the switch is pulled."""

    def __init__(self, stop: sandbox.Stop) -> None:
        self._stop = stop

    def task(self, name: str, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        return nullcontext(self)

    def advance(self, amount: int) -> None:
        self._stop.check()

    def note(self, text: str) -> None:
        pass


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
def named(node: Node, store: Store) -> Iterator[None]:
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


def check_inputs(node: Node, site: Site) -> None:
    """Read every locked file that `node` takes.

    Raises BuilderError naming the stage and the first that is missing or damaged, StoppedError as `build_layer` does.
    """
    recipe, store = site.recipe, site.store

    def sound(blob: Blob) -> bool:
        site.stop.check()
        return store.sound(blob)

    variant = f" --variant {recipe.variant}" if recipe.variant else ""
    hint = f"run `builder fetch {shlex.quote(str(recipe.directory))}{variant}`"
    with named(node, store):
        missing = [blob.filename for blob in node.inputs.blobs if not store.has(blob)]
        if missing:
            more = f" and {len(missing) - 1} more locked files are" if missing[1:] else ", a locked file, is"
            raise BuilderError(f"{missing[0]}{more} not in the store", hint=hint)
        with ThreadPoolExecutor() as pool:
            found = zip(node.inputs.blobs, pool.map(sound, node.inputs.blobs), strict=True)
            damaged = [blob.filename for blob, is_sound in found if not is_sound]
        if damaged:
            what = f"{damaged[0]} does not have its locked sha256 and was dropped from the store"
            raise BuilderError(what, hint=hint)


def _clocks(path: Path) -> tuple[int, int]:
    """Now, in nanoseconds, as the file system tells it, and the clock that programs look at."""
    path.touch()
    return path.stat().st_mtime_ns, time.time_ns()


def _context(
    site: Site,
    node: Node,
    below: Sequence[Path],
    draft: Draft,
    log: Path,
    kept: Path,
    before: Callable[[], Layer | None],
) -> Context:
    stage, epoch = node.stage, site.recipe.source_date_epoch
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
            layers=() if host_root else tuple(below),
            upper=None if host_root else draft.upper,
            work=None if host_root else draft.work,
            host_root=host_root,
            binds=tuple(binds),
            env={"SOURCE_DATE_EPOCH": str(epoch), **(env or {})},
            cwd=cwd,
            limits=limits,
        )
        sandbox.run(spec, log=log, kept=kept, stop=site.stop)

    def find(path: str) -> Path | None:
        return tree.resolve([*below, draft.upper], path)

    def blob_path(blob: Blob) -> Path:
        return site.store.path(blob.sha256)

    def locked_tool(name: str) -> Path:
        return tool(site.store, name)

    return Context(
        recipe=site.recipe,
        stage=stage,
        inputs=node.inputs,
        upper=draft.upper,
        scratch=draft.scratch,
        blob=blob_path,
        tool=locked_tool,
        run=run,
        lower=find,
        epoch=epoch,
        before=before,
    )
