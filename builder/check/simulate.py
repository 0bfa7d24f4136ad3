"""The template's own vLLM reads each profile and makes its engine configuration, on a simulated card.

The program that runs inside is `builder/data/simulated-card.py`: vLLM's decisions are real, no kernel runs. A profile
without cards is decided on the CPU as it is, and nothing is simulated.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from builder import sandbox
from builder.check.look import Look, View
from builder.check.model import Finding, Severity
from builder.check.packages import fits
from builder.check.rules import quiet, unseen
from builder.errors import BuilderError
from builder.gpucode import capability
from builder.progress import Progress
from builder.sandbox.spec import Bind, Limits, Spec

_INSIDE = "/run/builder/check"
_SECONDS = 600
_TRIED = ">=0.10,<0.11"
"""The versions of vLLM that the simulation was tried with: what another one refuses may be our doing."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": "/tmp"}

Run = Callable[[Spec], None]
Scratch = Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True)
class Decided:
    """What vLLM made of one profile."""

    view: View
    findings: tuple[Finding, ...]
    attention: str = ""  # the class of its attention backend; "" when it was not reached


def engines(views: Sequence[View], scratch: Scratch, progress: Progress, run: Run = sandbox.run) -> Iterator[Decided]:
    """What vLLM makes of each profile. Needs the template's layers, and uid 0 or a user namespace."""
    groups: Mapping[tuple[bool, str], list[View]] = defaultdict(list)
    for view in views:
        if reason := _hidden(view):
            yield _unseen(view, reason)
        else:
            groups[view.profile.gpus > 0, view.environment.get("PYTHONPATH", "")].append(view)
    for group in groups.values():
        with progress.task(f"vLLM decides on {len(group)} profiles"), scratch() as folder:
            try:
                answers = _ask(group, folder, run)
            except BuilderError as error:
                yield from (_unseen(view, str(error)) for view in group)
                continue
        for view in group:
            answer = answers.get(view.profile.name)
            if answer is None:
                yield _unseen(view, "its process ended without an answer")
            else:
                attention = answer.get("engine", {}).get("attention", "")
                yield Decided(view, tuple(_judge(view, answer)), attention)


def _unseen(view: View, reason: str) -> Decided:
    return Decided(view, (unseen("engine", subject(view), "what vLLM makes of it", reason),))


def _hidden(view: View) -> str:
    """Why nothing can be decided about a profile; "" when it can."""
    look = view.look
    if not look.tree.readable:
        return "only the list of files is at hand"
    if "vllm" not in look.importable:
        return f"no vLLM in {look.subject.venv}"
    if view.profile.gpus and look.subject.target is None:
        return "no [Target] is known, so there is no card to simulate"
    if not view.profile.model.shape and not look.tree.find(f"{view.profile.model.path}/config.json"):
        return "the model's shape is not known: no [Model.Shape] in the profile, no config.json in the template"
    return ""


def _ask(views: Sequence[View], folder: Path, run: Run) -> dict[str, Any]:
    """What the template's vLLM says of each profile, by name. Raises BuilderError."""
    look = views[0].look
    card = _card(look) if views[0].profile.gpus else None
    given, results = folder / "given", folder / "results"
    for place in (given, folder / "upper", folder / "work"):
        place.mkdir()
    results.touch()
    profiles = [_request(view, given, str(number)) for number, view in enumerate(views)]
    (given / "request.json").write_text(json.dumps({"card": card, "profiles": profiles}), encoding="utf-8")
    program = resources.files("builder").joinpath("data/simulated-card.py").read_text(encoding="utf-8")
    (given / "simulated-card.py").write_text(program, encoding="utf-8")
    python = f"{look.subject.venv}/bin/python"
    environment = {"PATH": f"{look.subject.venv}/bin:/usr/local/bin:/usr/bin:/bin", **look.environment, **_OFFLINE}
    if path := views[0].environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = path
    spec = Spec(
        name="check",
        argv=(python, "-Bs", f"{_INSIDE}/simulated-card.py", f"{_INSIDE}/request.json", "/run/builder/results"),
        layers=look.tree.layers,
        upper=folder / "upper",
        work=folder / "work",
        binds=(Bind(given, _INSIDE), Bind(results, "/run/builder/results", writable=True)),
        env=environment,
        limits=Limits(seconds=_SECONDS),
    )
    run(spec)
    return dict(_answers(results.read_text(encoding="utf-8", errors="replace")))


def _answers(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Profiles and what was made of them; a line that was cut off is none."""
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(line)
            yield str(found["name"]), found


def _card(look: Look) -> dict[str, Any]:
    target = look.subject.target
    assert target is not None
    number = capability(target.compute_capability)
    return {"name": target.name, "capability": [number // 10, number % 10], "memory_mib": target.memory_mib}


def _request(view: View, folder: Path, name: str) -> dict[str, Any]:
    """A profile for the program inside, with its model's shape, where that is needed, and its serve.yaml written.

    A false option is written as its `no-` form, as `deploy` does: vLLM passes over `false` in such a file.
    """
    profile = view.profile
    model = profile.model.path
    if not view.look.tree.find(f"{model}/config.json"):
        model = f"{_INSIDE}/model-{name}"
        (folder / f"model-{name}").mkdir()
        (folder / f"model-{name}" / "config.json").write_text(json.dumps(profile.model.shape), encoding="utf-8")
    share = {"gpu-memory-utilization": profile.share} if profile.gpus else {}
    options = {f"no-{key}" if value is False else key: value is False or value for key, value in view.options.items()}
    settings = {"model": model, **options, **share}
    (folder / f"{name}.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return {
        "name": profile.name,
        "config": f"{_INSIDE}/{name}.yaml",
        "environment": dict(profile.environment),
        "gpus": profile.gpus,
    }


def subject(view: View) -> str:
    """A profile as findings name it that follow from the simulation."""
    return f"profile {view.profile.name}" + (" on the simulated card" if view.profile.gpus else "")


def _judge(view: View, answer: Mapping[str, Any]) -> Iterator[Finding]:
    who, source = subject(view), _source(view)
    log = [str(line) for line in answer["log"]]
    if "error" in answer:
        seen = _reason(answer["error"], log)
        if not fits(view.look.importable["vllm"].version, _TRIED):
            reason = f"the simulation was tried with vLLM {_TRIED} alone, and this one ends with: {seen}"
            yield unseen("engine", who, "what vLLM makes of it", reason)
            return
        kind = answer["error"]["type"]
        what = "vLLM refuses its options" if kind == "exit" else f"vLLM refuses it: {kind}"
        mend = "take back what the line names; `vllm serve --help` lists the options"
        yield Finding("engine-refused", Severity.ERROR, who, what, seen, mend, source)
        return
    engine = answer["engine"]
    warnings = [
        line.partition("] ")[2] or line for line in log if line.startswith("WARNING") and not quiet().search(line)
    ]
    made = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in engine.items() if name != "v1")
    if not engine["v1"]:
        what = "vLLM leaves its V1 engine for V0, which this card's kernels do not serve"
        mend = "take back what the line names, or set an attention backend that serves it"
        yield Finding("engine-v0", Severity.ERROR, who, what, "; ".join(warnings) or made, mend, source)
    else:
        yield Finding("engine", Severity.NOTE, who, f"V1 engine, {engine['attention']}", made, "", source)
        for line in warnings:
            mend = "take back what the line names, unless it is meant"
            yield Finding("engine-warning", Severity.WARNING, who, "vLLM warns", line, mend, source)


def _reason(error: Mapping[str, str], log: Sequence[str]) -> str:
    if error["type"] == "exit":
        return next((line for line in reversed(log) if "error:" in line), error["text"])
    return " ".join(error["text"].split())


def _source(view: View) -> str:
    look, target = view.look, view.look.subject.target
    vllm = look.importable["vllm"]
    where = "on this machine's CPU"
    if view.profile.gpus and target is not None:
        where = (
            f"on a simulated card ({target.name}, {target.compute_capability}, {target.memory_mib} MiB); no kernel ran"
        )
    real = look.tree.find(f"{view.profile.model.path}/config.json")
    shape = f"{view.profile.model.path}/config.json in the template" if real else "the profile's [Model] table"
    return f"{vllm.name} {vllm.version} of the template, {where}; the model's shape from {shape}"
