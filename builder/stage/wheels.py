"""Kind `wheels`: a hash-locked set of wheels, or a part of it, in a venv."""

from __future__ import annotations

from collections.abc import Sequence

from builder.lock.model import Lock, Request
from builder.recipe.keys import Key, Type
from builder.recipe.model import Recipe, Stage
from builder.stage import venv
from builder.stage.kind import Context, Inputs, Kind


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    return (venv.request(recipe.venv(stage.params["Venv"])),)


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    chosen = recipe.venv(stage.params["Venv"])
    wheels = venv.select(chosen, stage, lock, stage.params["Only"], stage.params["Except"])
    return venv.inputs(recipe, stage, wheels)


def _build(context: Context) -> None:
    _, *blobs = context.inputs.blobs
    venv.install(context, context.inputs.params, blobs)


KIND = Kind(
    name="wheels",
    version=1,
    help="Locked wheels in a venv, with bytecode. Several stages can share one venv and its lock.",
    unseen=frozenset({"wheels", "cuda-wheels"}),
    keys=(
        venv.VENV,
        Key("Only", Type.TEXTS, 'Take only wheels of these names; patterns such as "nvidia-*" (fnmatch).'),
        Key("Except", Type.TEXTS, "Leave out wheels of these names; patterns too."),
    ),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
