"""`pvesh get`, as far as deploys ask it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from . import pvesm, running, state, tasks

NODE = "vm"


def main(argv: Sequence[str]) -> int:
    """Answer in JSON, which must have been asked for."""
    match list(argv):
        case ["get", path, *options, "--output-format", "json"]:
            print(json.dumps(_answer(path, dict(zip(options[::2], options[1::2], strict=True)))))
            return 0
        case _:
            raise state.not_simulated(f"pvesh {' '.join(argv)}")


def _answer(path: str, options: dict[str, str]) -> object:
    match path.strip("/").split("/"):
        case ["cluster", "resources"]:
            return [_resource(ctid) for ctid in state.ids()]
        case ["nodes", "localhost", "storage"]:
            return [pvesm.facts()]
        case ["nodes", "localhost", "tasks"] if options.get("--source") == "active":
            return [_task(task) for task in tasks.running()]
        case ["nodes", "localhost", "lxc", ctid, "feature"]:
            state.load(int(ctid))
            return {"hasFeature": 0}
        case _:
            raise state.not_simulated(f"pvesh get {path} {options}")


def _resource(ctid: int) -> dict[str, object]:
    config = state.load(ctid)
    status = "running" if running.runs(ctid) else "stopped"
    made: dict[str, object] = {"id": f"lxc/{ctid}", "vmid": ctid, "type": "lxc", "node": NODE, "status": status}
    made |= {"name": config.keys.get("hostname", f"CT{ctid}"), "template": int(config.template)}
    return made | {key: config.keys[key] for key in ("lock", "tags") if key in config.keys}


def _task(task: tasks.Task) -> dict[str, object]:
    names = {"type": task.kind, "id": task.guest, "upid": task.upid, "user": "root@pam", "status": "RUNNING"}
    return {**names, "node": NODE, "pid": task.pid, "starttime": task.started, "saved": "0"}
