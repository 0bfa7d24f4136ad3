"""Kind `debian`: a new root from nothing but locked packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from builder.errors import BuilderError, UsageError
from builder.lock import archive
from builder.lock.model import DebRequest, Lock, Request
from builder.recipe.model import Recipe, Stage
from builder.sandbox.spec import Bind
from builder.stage import aptrepo, debs
from builder.stage.kind import Context, Inputs, Kind

_ROOT = "/run/builder/root"
_SETUP = """\
cd "$1"
mkdir -p usr/bin usr/lib usr/lib64 usr/sbin
ln -s usr/bin usr/lib usr/lib64 usr/sbin .
echo 'APT::Sandbox::User "root";' >etc/apt/apt.conf.d/builder"""
"""The links of a merged /usr must be there before the first package is unpacked. apt would otherwise give up root or
not, and so leave folders with other owners, as permissions of folders outside of the root happen to be."""
_RUN = "/run/builder/run"
_INSTALL = f"""\
set -eu
{debs.NO_SERVICES}rmdir /run/lock
dpkg --install --force-depends {aptrepo.PLACE}/*.deb
[ ! -e /run/lock ] || cp -a /run/lock {_RUN}/
[ ! -e /etc/machine-id ] || chmod 644 /etc/machine-id
[ $# = 0 ] || apt-mark auto "$@"
"""
"""All packages at once, by name: versions of apt install in different orders, and so give users different ids. Scripts
that run before their package is unpacked may count on some others (Debian Policy 7.2): mmdebstrap has extracted those.
dpkg, the template's own, configures by Depends; it does not sort by Pre-Depends, and would refuse. /run/lock and the
mode of machine-id are what mmdebstrap leaves of them."""
_ENVIRONMENT = {
    **debs.ENVIRONMENT,
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    **dict.fromkeys(("LANG", "LANGUAGE", "LC_ALL"), "C.UTF-8"),
}
"""The one that mmdebstrap gives to packages' scripts."""
_DROPPED = (
    "etc/apt/apt.conf.d/builder",
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/resolv.conf",
)
"""What serves this run alone, or is copied from the machine that it runs on."""


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    """The stage's packages, on top of nothing."""
    return [DebRequest(stage.lock_id, debs.wanted(stage), ())]


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    """The locked packages and the final sources.list. The host's apt, dpkg and mmdebstrap do not show in the bytes.

    Raises UsageError for a stage that is not the first, BuilderError when the lock has no packages for it.
    """
    if stage.name != next(stage.name for stage in recipe.stages if stage.skip is None):
        raise UsageError("kind debian must come first", where=f"stage {stage.name}", hint='use Kind = "packages" here')
    locked = debs.locked(stage, lock)
    params = {
        **debs.params(recipe, stage, locked),
        "Distribution": recipe.distribution.name,
        "Release": recipe.distribution.release,
        "Sources": archive.sources(recipe.distribution),
    }
    return Inputs(params, tuple(deb.blob for deb in locked))


def _build(context: Context) -> None:
    """Extract with mmdebstrap what dpkg needs to run, let it install all packages in the layer, then clean up.

    Raises BuilderError when mmdebstrap is not installed, when a package's script fails, or when other packages are
    installed than the locked ones.
    """
    if shutil.which("mmdebstrap") is None:
        raise BuilderError("is not installed", where="mmdebstrap", hint="run: sudo apt install mmdebstrap")
    params, upper = context.inputs.params, context.upper
    repository = context.scratch / "repo"
    first = debs.needed_early(aptrepo.write(repository, context.inputs.blobs, context.blob))
    context.run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=extract",
            "--format=directory",
            "--verbose",
            "--skip=check/signed-by",
            f"--architectures={context.recipe.distribution.architecture}",
            f"--include={','.join(first)}",
            f"--setup-hook={_SETUP}",
            params["Release"],
            _ROOT,
            f"deb [trusted=yes] copy://{aptrepo.PLACE} ./",
        ],
        env=debs.ENVIRONMENT,
        binds=[Bind(repository, aptrepo.PLACE), Bind(upper, _ROOT, writable=True)],
        host_root=True,
    )
    context.run(
        ["sh", "-c", _INSTALL, "sh", *debs.automatic(params)],
        env=_ENVIRONMENT,
        binds=[Bind(repository, aptrepo.PLACE), Bind(debs.within(upper, "run/lock").parent, _RUN, writable=True)],
    )
    for name in _DROPPED:
        debs.within(upper, name).unlink(missing_ok=True)
    sources = debs.within(upper, f"etc/apt/sources.list.d/{params['Distribution']}.sources")
    sources.unlink(missing_ok=True)
    sources.write_text(params["Sources"])
    sources.chmod(0o644)
    debs.clean(upper, context.epoch, with_docs=params["WithDocs"])
    _date_folders(upper, context.epoch)
    debs.check(params["Locked"], debs.installed(debs.within(upper, debs.STATUS.lstrip("/"))), context.stage)


def _date_folders(root: Path, epoch: int) -> None:
    """Give every folder the time `epoch`: a folder of several packages has that of the one extracted last."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (epoch, epoch))


KIND = Kind(
    name="debian",
    version=3,
    help="The base: a new Debian or Ubuntu root with only the packages that its recipe names and what these need.",
    keys=debs.KEYS,
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
