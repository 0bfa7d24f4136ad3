"""Invented files in the phoenix form, one container of each generation."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.deploy.containers import Loaded, load

FIRST: dict[str, Any] = {
    "name": "first",
    "memory_mb": 8192,
    "cores": 4,
    "template": "/var/lib/vz/template/cache/base.tar.zst",
    "storage_pool": "pool-a",
    "storage_size_gb": "40",
    "network_config": "192.0.2.71/24,192.0.2.1,192.0.2.53",
    "static_ip": "192.0.2.71/24",
    "mac_address": "02:00:00:00:07:01",
    "features": "nesting=1,keyctl=1",
    "gpu_assignment": "0, 1",
    "vllm_model": "org/model",
    "vllm_tensor_parallel_size": "2",
    "vllm_api_port": 8000,
}

FLAT: dict[str, Any] = {
    "name": "flat",
    "memory_mb": 8192,
    "swap_mb": 512,
    "cores": 4,
    "storage_pool": "pool-a",
    "storage_size_gb": 40,
    "network_config": {"name": "eth0", "bridge": "vmbr9", "ip": "192.0.2.72/24", "gw": "192.0.2.1"},
    "mac_address": "02:00:00:00:07:02",
    "gpu_assignment": "0,1",
    "unprivileged": True,
    "portainer_role": "none",
    "clone_from_ctid": "720",
    "features": ["vllm"],
    "pct_options": ["nesting=1", "keyctl=1"],
    "lxc_options": ["lxc.apparmor.profile=unconfined", "lxc.mount.auto:sys:rw"],
    "apparmor_profile": "unconfined",
    "apparmor_manages_nesting": True,
    "start_at_boot": True,
    "boot_order": 3,
    "boot_delay": 5,
    "ports": ["8000:8000"],
    "dependencies": ["750"],
    "firewall": {"enabled": True, "rules": [{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "8000"}]},
    "zfs_volumes": [{"name": "models", "pool": "pool-b", "size_gb": 50, "mount_point": "/vllm_models"}],
    "health_check": {"command": "true", "retries": 5, "interval": 5},
    "vllm_model": "org/model",
    "vllm_quantization": "fp8",
    "vllm_parameters": {"dtype": "auto", "max_model_len": 4096},
    "vllm_args": ["--quantization", "fp8"],
}

NESTED: dict[str, Any] = {
    "name": "nested",
    "memory_mb": 8192,
    "cores": 4,
    "storage_pool": "pool-a",
    "storage_size_gb": 40,
    "network_config": {
        "name": "eth0",
        "bridge": "vmbr9",
        "ip": "192.0.2.73/24",
        "gw": "192.0.2.1",
        "nameservers": "192.0.2.53 192.0.2.54",
    },
    "mac_address": "02:00:00:00:07:03",
    "gpu_assignment": "none",
    "unprivileged": True,
    "clone_from_ctid": "720",
    "mount_points": [
        {"host_path": "/srv/models", "container_path": "/models"},
        {"host_path": "/srv/tls", "container_path": "/etc/tls"},
    ],
    "traefik_service": {"name": "demo", "port": 8000},
    "vllm_engine_config": {
        "ModelConfig": {"model": "org/model", "max_model_len": 4096},
        "CacheConfig": {"gpu_memory_utilization": 0.5},
        "ParallelConfig": {"tensor_parallel_size": 1},
        "ServerConfig": {"host": "0.0.0.0", "port": 8000, "served_model_name": "demo"},
    },
}

TEMPLATE: dict[str, Any] = {
    "name": "template",
    "memory_mb": 2048,
    "cores": 2,
    "storage_pool": "pool-a",
    "storage_size_gb": 32,
    "network_config": {"name": "eth0", "bridge": "vmbr9", "ip": "192.0.2.220/24", "gw": "192.0.2.1"},
    "mac_address": "02:00:00:00:07:20",
    "gpu_assignment": "0,1",
    "unprivileged": True,
    "template_snapshot_name": "done",
}


Read = Callable[..., Loaded]


@pytest.fixture
def generations() -> dict[str, dict[str, Any]]:
    """A copy of the entries above, by ctid."""
    return copy.deepcopy({"701": FIRST, "702": FLAT, "703": NESTED, "720": TEMPLATE})


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file with these entries."""

    def read(entries: dict[str, Any], **top: Any) -> Loaded:
        path = tmp_path / "phoenix_lxc_configs.json"
        path.write_text(json.dumps({"$schema": "x.json", **top, "lxc_configs": entries}), encoding="utf-8")
        return load(path)

    return read


@pytest.fixture
def one(read: Read) -> Read:
    """Reads a file with the flat entry and its template; keys of the entry are changed, None takes one away."""

    def one(**changes: Any) -> Loaded:
        entry = {key: value for key, value in {**FLAT, **changes}.items() if value is not None}
        return read({"702": entry, "720": TEMPLATE})

    return one
