"""Kind `packages`: more locked Debian packages on top of the stages below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from builder.errors import UsageError
from builder.lock.model import DebRequest, Lock, Request
from builder.recipe.model import Recipe, Stage
from builder.sandbox.spec import Bind
from builder.stage import aptrepo, debs
from builder.stage.kind import Context, Inputs, Kind

_KINDS = frozenset({"debian", "packages"})

_INSTALL = f"""\
set -eu
{debs.NO_SERVICES}apt-get -q -y --no-remove install -o APT::Install-Recommends=false -o APT::Sandbox::User=root \\
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dpkg::Use-Pty=false {aptrepo.PLACE}/*.deb
[ $# = 0 ] || apt-mark auto "$@"
"""


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    """The stage's packages, on top of those of every stage of packages before it. Raises UsageError without one."""
    before = takewhile(lambda other: other.name != stage.name, recipe.stages)
    below = tuple(other.lock_id for other in before if other.kind in _KINDS and other.skip is None)
    if not below:
        raise UsageError(
            "nothing below it to install packages into",
            where=f"stage {stage.name}",
            hint="put a stage of kind debian first",
        )
    return [DebRequest(stage.lock_id, debs.wanted(stage), below)]


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    """The locked packages. Raises BuilderError when the lock has none for this stage."""
    locked = debs.locked(stage, lock)
    return Inputs(debs.params(recipe, stage, locked), tuple(deb.blob for deb in locked))


def _build(context: Context) -> None:
    """Install the packages with the template's own apt, then clean up.

    Raises BuilderError when a package's script fails, or when afterwards others are installed than before and locked.
    """
    params = context.inputs.params
    before = debs.installed(context.lower(debs.STATUS))
    if context.inputs.blobs:
        folder = context.scratch / "debs"
        aptrepo.copy(folder, context.inputs.blobs, context.blob)
        command = ["sh", "-c", _INSTALL, "sh", *debs.automatic(params)]
        context.run(command, env=debs.ENVIRONMENT, binds=[Bind(folder, aptrepo.PLACE)])
        debs.clean(context.upper, context.epoch, with_docs=params["WithDocs"])
    debs.check({**before, **params["Locked"]}, debs.installed(context.lower(debs.STATUS)), context.stage)


KIND = Kind(
    name="packages",
    version=1,
    help="More Debian packages on top of the stages below, installed with the template's own apt.",
    keys=debs.KEYS,
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
