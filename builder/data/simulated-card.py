"""Let the vLLM of a template read profiles' options and make its engine configuration, as if a card were there.

Usage: simulated-card.py REQUEST RESULTS. Runs inside the template, with the template's Python, without network.

REQUEST is JSON: `card` (name, capability [major, minor], memory_mib), or null to leave the machine as it is, and
`profiles` (name, config: path of a serve.yaml, environment, gpus). RESULTS gets one JSON object a line: `name`, and
`engine` (what vLLM decided) or `error` (type and text), and `log`, vLLM's own lines.

A simulation: NVML and torch are told of a card, libcuda is a library whose functions fail. vLLM's decisions are real,
no kernel runs. Each profile is decided in a process of its own, forked after vLLM was imported once.
"""

import glob
import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import types

STUB = "/tmp/simulated-card"
JOBS = 2
LOG_LINES = 200
MIB = 1 << 20


def make_libcuda():
    """A libcuda.so.1 with every driver function that vLLM's libraries name; each answers 100, no device."""
    os.mkdir(STUB)
    named = set()
    for library in glob.glob(f"{sysconfig.get_path('purelib')}/vllm/*.so"):
        listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        named.update(re.findall(r" U (cu[A-Z]\w*)$", listed.stdout, re.MULTILINE))
    source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(named))
    argv = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", f"{STUB}/libcuda.so.1", "-"]
    subprocess.run(argv, input=source, text=True, check=True)


def simulate(card):
    """Tell NVML's and torch's callers of `card`; how many there are, each profile says."""
    import torch
    import vllm.third_party.pynvml as nvml
    import vllm.utils

    major, minor = card["capability"]
    memory = types.SimpleNamespace(total=card["memory_mib"] * MIB, free=card["memory_mib"] * MIB, used=0)
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetCount = lambda: cards["count"]
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetCudaComputeCapability = lambda handle: (major, minor)
    nvml.nvmlDeviceGetName = lambda handle: card["name"]
    nvml.nvmlDeviceGetUUID = lambda handle: f"GPU-simulated-{handle}"
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: memory
    nvml.nvmlDeviceGetP2PStatus = lambda one, other, index: 1  # NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: cards["count"]
    torch.cuda.get_device_capability = lambda device=None: (major, minor)
    vllm.utils.cuda_device_count_stateless = lambda: cards["count"]


cards = {"count": 1}


def prepare(request):
    """Import once what every profile needs."""
    if request["card"]:
        simulate(request["card"])
    importlib.import_module("vllm.entrypoints.cli.serve")
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()  # spares an import of vLLM a model


def decide(profile):
    """What vLLM makes of the profile's serve.yaml: as `vllm serve --config` does it, up to the engine's start."""
    import vllm.envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils import FlexibleArgumentParser

    cards["count"] = max(profile["gpus"], 1)
    sys.argv = ["vllm", "serve", "--config", profile["config"]]
    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args(sys.argv[1:])
    command.validate(arguments)
    if getattr(arguments, "model_tag", None) is not None:
        arguments.model = arguments.model_tag
    made = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    model, cache = made.model_config, made.cache_config
    return {
        "v1": bool(vllm.envs.VLLM_USE_V1),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "kv_cache_dtype": cache.cache_dtype,
        "block_size": cache.block_size,
        "attention": attention(model, cache),
        "runner": model.runner_type,
        "max_model_len": model.max_model_len,
        "max_num_seqs": made.scheduler_config.max_num_seqs,
        "tensor_parallel_size": made.parallel_config.tensor_parallel_size,
    }


def attention(model, cache):
    """The name of the attention backend that vLLM takes."""
    from vllm.attention.selector import get_attn_backend

    taken = get_attn_backend(model.get_head_size(), model.dtype, cache.cache_dtype, cache.block_size or 16, False)
    return taken.__name__


def answer(profile, said):
    """Decide in this process and return what to tell; `said` is where its output goes."""
    told = {"name": profile["name"]}
    os.environ.update(profile["environment"])
    try:
        told["engine"] = decide(profile)
    except SystemExit as error:
        told["error"] = {"type": "exit", "text": f"vllm serve ends with status {error.code}"}
    except BaseException as error:
        told["error"] = {"type": type(error).__name__, "text": str(error)[:2000]}
    sys.stdout.flush()
    sys.stderr.flush()
    said.seek(0)
    told["log"] = said.read().splitlines()[-LOG_LINES:]
    return told


def start(profile, results):
    """Fork a process that decides one profile and adds its line to `results`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            told = answer(profile, said)
        os.write(results, json.dumps(told).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def main(request_path, results_path):
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    if request["card"] and not os.path.exists(STUB):
        make_libcuda()
        paths = filter(None, [STUB, os.environ.get("LD_LIBRARY_PATH")])
        os.environ["LD_LIBRARY_PATH"] = ":".join(paths)  # read by the dynamic linker at the start of a program
        os.execv(sys.executable, [sys.executable, *sys.argv])
    prepare(request)
    results = os.open(results_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    running = 0
    for profile in request["profiles"]:
        start(profile, results)
        running += 1
        if running == JOBS:
            os.wait()
            running -= 1
    for _ in range(running):
        os.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
