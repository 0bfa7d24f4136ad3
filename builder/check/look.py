"""What rules need to know of a template, read once; and the same with a profile in it."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from builder.check import packages
from builder.check.model import Profile, Subject
from builder.check.packages import Package
from builder.check.tree import Tree

UNIT = "vllm.service"
_UNIT_FOLDERS = ("usr/lib/systemd/system", "etc/systemd/system")
_MANAGER = ("usr/lib/systemd/system.conf.d", "etc/systemd/system.conf.d")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"  # of a unit that sets none: systemd.exec(5)


class UnseenError(Exception):
    """Why something cannot be looked at here."""


@dataclass(frozen=True)
class Look:
    """A template as rules see it."""

    subject: Subject
    site: str  # the folder of site-packages that vLLM runs from; "" when there is none
    packages: tuple[Package, ...]
    environment: Mapping[str, str]  # the service's own; empty where units cannot be read
    variables: frozenset[str]  # every VLLM_ variable that this vLLM knows; empty where they cannot be read

    @property
    def tree(self) -> Tree:
        return self.subject.tree

    @property
    def python(self) -> str:
        """As in "3.11"; "" when there is no environment."""
        found = re.search(r"/python(\d+\.\d+)/", self.site)
        return found[1] if found else ""

    @cached_property
    def importable(self) -> Mapping[str, Package]:
        """What vLLM's interpreter imports without further paths."""
        return packages.importable(self.packages, [self.site])

    @property
    def capability(self) -> str:
        """The target card's, as in "12.0"; "" when it is not known."""
        return self.subject.target.compute_capability if self.subject.target else ""


@dataclass(frozen=True)
class View:
    """A profile in its template: what its server would see."""

    look: Look
    profile: Profile
    options: Mapping[str, Any] = field(default_factory=dict)  # with dashes
    environment: Mapping[str, str] = field(default_factory=dict)  # the service's and the profile's

    @property
    def sites(self) -> list[str]:
        """Where Python looks for packages, first first."""
        return [*filter(None, self.environment.get("PYTHONPATH", "").split(":")), self.look.site]

    @cached_property
    def importable(self) -> Mapping[str, Package]:
        return packages.importable(self.look.packages, self.sites)

    @cached_property
    def shape(self) -> Mapping[str, Any]:
        """The model's config.json where it lies in the template, else as the profile has it. Raises UnseenError."""
        path, tree = f"{self.profile.model.path}/config.json", self.look.tree
        if tree.find(path) is None:
            found = self.profile.model.shape
        elif not tree.readable:
            raise UnseenError(f"{path}: only the list of files is at hand")
        else:
            try:
                found = json.loads(tree.read(path) or "")
            except ValueError:
                found = None
            if not isinstance(found, Mapping):
                raise UnseenError("the model's config.json is no JSON object")
        if not found:
            raise UnseenError("the model's shape is not known: no [Model.Shape] in the profile, no config.json here")
        return found

    def fact(self, name: str) -> bool:
        """One of `FACTS`. Raises KeyError."""
        return FACTS[name](self)


def _gpu(view: View) -> bool:
    return view.profile.gpus > 0


def _nvcc(view: View) -> bool:
    """Whether the service would find nvcc; whether there is one, where the service's PATH cannot be read."""
    if not view.look.tree.readable:
        return any(path.endswith("/bin/nvcc") for path in view.look.tree.entries)
    folders = view.environment.get("PATH", _PATH).split(":")
    if home := view.environment.get("CUDA_HOME"):
        folders.append(f"{home}/bin")
    return any(view.look.tree.find(f"{folder}/nvcc") for folder in (*folders, "/usr/local/cuda/bin") if folder)


def _prebuilt_sampler(view: View) -> bool:
    """Whether FlashInfer's sampling module was built ahead of time."""
    package = view.importable.get("flashinfer-python")
    within = view.look.tree.within(package.site) if package else ()
    return any(entry.path.endswith("/sampling/sampling.so") for entry in within)


FACTS = {"gpu": _gpu, "nvcc": _nvcc, "prebuilt-sampler": _prebuilt_sampler}


def look(subject: Subject) -> Look:
    """Read what rules need of a template. Raises BuilderError when a file of it cannot be read."""
    tree = subject.tree
    there = packages.packages(tree)
    return Look(subject, _site(tree, subject.venv), there, _environment(tree), _variables(tree, subject.venv))


def view(of: Look, profile: Profile) -> View:
    """The profile in its template."""
    options = {name.replace("_", "-").lstrip("-"): value for name, value in profile.options.items()}
    return View(of, profile, options, {**of.environment, **profile.environment})


def _site(tree: Tree, venv: str) -> str:
    """The venv's site-packages."""
    pattern = re.compile(rf"{re.escape(venv.strip('/'))}/lib/python3\.\d+/site-packages")
    return next(filter(pattern.fullmatch, tree.entries), "")


def _environment(tree: Tree) -> dict[str, str]:
    """What systemd gives to the service: the manager's defaults, then those of the unit and its drop-ins."""
    made: dict[str, str] = {}
    for key, files in (("DefaultEnvironment", _parts(tree, _MANAGER)), ("Environment", _unit_files(tree))):
        for path in files:
            for value in _values(tree.read(path) or "", key):
                made = {**made, **value} if value else {}
    return made


def _unit_files(tree: Tree) -> Iterator[str]:
    units = [f"{folder}/{UNIT}" for folder in _UNIT_FOLDERS if f"{folder}/{UNIT}" in tree.entries]
    yield from units[-1:]
    yield from _parts(tree, [f"{folder}/{UNIT}.d" for folder in _UNIT_FOLDERS])


def _parts(tree: Tree, folders: tuple[str, ...] | list[str]) -> list[str]:
    """The drop-ins, by name; one in a later folder replaces its namesake."""
    found = {
        PurePosixPath(entry.path).name: entry.path
        for folder in folders
        for entry in tree.within(folder)
        if entry.path.endswith(".conf")
    }
    return [path for _, path in sorted(found.items())]


def _values(text: str, key: str) -> Iterator[dict[str, str]]:
    """The assignments of each line ``KEY=`` (systemd.exec(5)); an empty one resets."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(f"{key}="):
            try:
                words = shlex.split(line.partition("=")[2])
            except ValueError:
                continue
            yield dict(word.split("=", 1) for word in words if "=" in word)


def _variables(tree: Tree, venv: str) -> frozenset[str]:
    """The keys of `environment_variables` in vllm/envs.py."""
    text = tree.read(f"{_site(tree, venv)}/vllm/envs.py") if _site(tree, venv) else None
    try:
        module = ast.parse(text or "")
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            names.update(name for name in keys if name.startswith("VLLM_"))
    return frozenset(names)
