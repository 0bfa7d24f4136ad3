"""From keys to layers: what is in the store is taken, what is not is built, side by side where stages allow it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from threading import BoundedSemaphore

from builder import sandbox, tree
from builder.build import explain
from builder.build.layer import CACHED, Built, Site, build_layer, check_inputs, present
from builder.build.plan import Node, blobs
from builder.errors import BuilderError
from builder.progress import Progress
from builder.recipe.model import Recipe
from builder.sandbox.spec import Spec
from builder.store import Layer, Store


def build(recipe: Recipe, nodes: Sequence[Node], store: Store, progress: Progress) -> tuple[Built, ...]:
    """The layers of `nodes`, lowest first.

    Each is taken from the store when its key is there and its files are as they were captured, and built otherwise,
    as soon as the layers that it is built over are there.
    Raises BuilderError naming the stage when an input is missing or damaged, when the stage fails, or when it brings
    a file that a stage which it does not see brings too, with other bytes.
    """
    for blob in blobs(nodes):
        store.has(blob)  # marks it as used: gc leaves to later stages what they need
    site = Site(recipe, store, progress, sandbox.Stop())
    # Inputs are read ahead of their stages, while these leave a processor idle.
    with ThreadPoolExecutor(1, "ahead", os.nice, (10,)) as ahead, ThreadPoolExecutor(max(1, len(nodes))) as pool:
        try:
            checks = {
                number: ahead.submit(check_inputs, nodes[number], site)
                for number, layer in enumerate(layers(nodes, store))
                if layer is None
            }
            at_once = BoundedSemaphore((os.cpu_count() or 1) + 1)  # one more than CPUs: stages wait for the disk
            stages: list[Future[Built]] = []
            for number, node in enumerate(nodes):
                lower = [stages[below] for below in node.over]
                stages.append(pool.submit(_stage, node, lower, checks.get(number), at_once, site))
            wait(stages, return_when=FIRST_EXCEPTION)
            built = [stage.result() for stage in stages if stage.done()]
        except BaseException:
            site.stop.pull()
            raise
        finally:
            ahead.shutdown(cancel_futures=True)
    _refuse_clashes(built)
    return tuple(built)


def _stage(
    node: Node, lower: Sequence[Future[Built]], check: Future[None] | None, at_once: BoundedSemaphore, site: Site
) -> Built:
    below = [built.result() for built in lower]
    if (found := present(node, below, site)) is not None:
        return found
    with at_once:
        site.stop.check()
        if check is not None:
            check.result()
        else:
            check_inputs(node, site)
        return build_layer(node, below, site)


def _refuse_clashes(built: Sequence[Built]) -> None:
    for number, upper in enumerate(built):
        for lower in (each for below, each in enumerate(built[:number]) if below not in upper.node.over):
            clash = min(tree.clashes(lower.layer.index, upper.layer.index), key=len, default=None)
            if clash is not None:
                name = upper.node.stage.name
                raise BuilderError(
                    f"/{clash} comes with stage {lower.node.stage.name} too, and is not the same there",
                    where=f"stage {name}",
                    hint="leave what brings it out of one of the two, with Only or Except",
                )


def layers(nodes: Sequence[Node], store: Store) -> list[Layer | None]:
    """The layer of each node that is in the store; None for one that is not, and for those that see such a one."""
    found: list[Layer | None] = []
    for node in nodes:
        lower = [layer.digest for number in node.over if (layer := found[number]) is not None]
        found.append(store.layer(node.key(lower)) if len(lower) == len(node.over) else None)
    return found


def outlook(recipe: Recipe, nodes: Sequence[Node], store: Store) -> Iterator[tuple[Node, str]]:
    """What `build` would do, without doing it: each node with "cached" or why it would be built."""
    found = layers(nodes, store)
    for node, layer in zip(nodes, found, strict=True):
        lower = [below.digest for number in node.over if (below := found[number]) is not None]
        if layer is not None:
            yield node, CACHED
        elif len(lower) == len(node.over):
            body = node.full_body(lower)
            yield node, explain.explain(store, recipe.full_name, node.stage.name, body, node.listing)
        else:
            rebuilt = next(nodes[number].stage.name for number in node.over if found[number] is None)
            yield node, f"depends on {rebuilt}: cached only if that comes out as before"


def standing(nodes: Sequence[Node], store: Store) -> list[Layer]:
    """The layers of `nodes` that are in the store, lowest first, up to the first that is not."""
    return [layer for layer in takewhile(lambda layer: layer is not None, layers(nodes, store)) if layer is not None]


@contextmanager
def over(built: Sequence[Built], store: Store) -> Iterator[Callable[[Spec], Spec]]:
    """Finished layers with a throw-away upper layer, to run commands over: `builder shell`, `builder lock`.

    Yields a function that fills in `layers`, `upper` and `work` of a Spec.
    """
    with store.scratch() as scratch:
        upper, work = scratch / "upper", scratch / "work"
        upper.mkdir()
        work.mkdir()
        trees = tuple(stage.layer.tree for stage in built)
        yield lambda spec: replace(spec, layers=trees, upper=upper, work=work)
