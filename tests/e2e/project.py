"""A copy of the project's recipes and locks that a test may change, and the builder run over it as some user."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conftest import HOUSE, User

STORE = Path(os.environ.get("BUILDER_STORE") or Path.home() / ".cache" / "builder")
"""The machine's own store: what an earlier run fetched need not be fetched again."""


WAY_OUT = re.compile(r"(?i)(http|https|all|no)_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|PIP_CERT")
NETWORK = {name: value for name, value in os.environ.items() if WAY_OUT.fullmatch(name)}
"""What this machine needs to reach the network."""


@dataclass(frozen=True)
class Project:
    """Recipes and locks in a folder of their own, and the store that builds of them use."""

    folder: Path
    user: User

    @property
    def store(self) -> Path:
        return Path(self.user.env["BUILDER_STORE"])

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def builder(self, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
        """Run the command line over this project."""
        return self.user.run([*prefix, *self.argv(*arguments)])

    def argv(self, *arguments: str) -> list[str]:
        """What `builder` runs; RECIPE arguments that start with `recipes/` are of this project."""
        found = [str(self.folder / word) if word.startswith("recipes/") else word for word in arguments]
        return [self.user.python, "-c", "from builder.cli import main; main()", *found]

    def json(self, *arguments: str, prefix: Sequence[str] = ()) -> Any:
        """The JSON that a command which must pass prints."""
        done = self.builder(*arguments, "--json", prefix=prefix)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def with_env(self, **more: str) -> Project:
        """The same with more in the environment."""
        return replace(self, user=replace(self.user, env={**self.user.env, **more}))


def project(user: User, folder: Path, *recipes: str, store: Path | None = None) -> Project:
    """Copy `recipes` with what they share into `folder`, which then belongs to `user`.

    `store` None: a new store beside it, with copies of the blobs that the machine's store has.
    """
    for name in (*recipes, "vllm-service"):
        shutil.copytree(HOUSE / "recipes" / name, folder / "recipes" / name)
        if (HOUSE / "locks" / name).exists():
            shutil.copytree(HOUSE / "locks" / name, folder / "locks" / name)
    if store is None:
        store = folder / "store"
        seed(store, folder, recipes)
    subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(folder)], check=True)
    return Project(folder, replace(user, env={**user.env, "BUILDER_STORE": str(store)}))


def seed(store: Path, folder: Path, recipes: Sequence[str]) -> None:
    """Copy into `store` those blobs of the machine's store that the locks of `recipes` name, and the tools' ones."""
    from builder.lock import read
    from builder.store.tools import tool_blobs

    wanted = {blob.sha256 for blob in tool_blobs()}
    for name in recipes:
        lock = read(folder / "locks" / name)
        wanted |= {deb.blob.sha256 for debs in lock.debs.values() for deb in debs}
        wanted |= {wheel.blob.sha256 for wheels in lock.venvs.values() for wheel in wheels}
    for sha256 in wanted:
        source = STORE / "blobs" / "sha256" / sha256[:2] / sha256
        if source.exists():
            target = store / "blobs" / "sha256" / sha256[:2] / sha256
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
