"""A place for deploys over ssh to a simulated node."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import User
from container import new_bridge, open_folder
from deploying import SIMULATED, Site, entries, new_project

from .node import Node, simulated_node


@dataclass(frozen=True)
class NodeSite(Site):
    """A project, and the node that its deploys go to."""

    node: Node

    @property
    def host(self) -> str:
        return f"ssh:root@127.0.0.1:{self.node.sshd.port}"

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "BUILDER_SSH": shlex.join(self.node.sshd.program)}

    @property
    def template(self) -> Path:
        (found,) = (self.folder / "artifacts").glob("*.tar.zst")
        return found

    def containers(self) -> list[str]:
        return self.node.containers()

    def clear(self) -> None:
        self.node.clear()
        shutil.rmtree(self.state, ignore_errors=True)


@contextmanager
def node_site(user: User, rows: Sequence[tuple[int, str, str, int]]) -> Iterator[NodeSite]:
    """A site with the simulated vLLM's template and a node with nothing on it."""
    with new_bridge() as bridge, open_folder() as folder, simulated_node(folder / "node") as node:
        project = new_project(folder, SIMULATED, entries(bridge, rows))
        made = NodeSite(project, node.lxc, folder / "state", bridge, user, node)
        done = made.builder("template", "recipes/simulated-vllm")
        assert done.returncode == 0, done.stderr
        yield made
