"""A profile as vLLM's service reads it: /etc/vllm/serve.yaml and /etc/vllm/env.

`vllm serve --config` (vllm/utils/__init__.py, 0.10.2) takes a flat mapping and turns each pair into an argument; it
drops a false value, so false is written as the option's own `no-` form. The variables are an EnvironmentFile of
systemd.exec(5).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from builder.deploy.model import Container, File
from builder.deploy.profile.model import Profile, Value
from builder.deploy.profile.secrets import Secrets
from builder.deploy.profile.settings import option_wrong, variable_wrong
from builder.errors import UsageError

SERVE = "/etc/vllm/serve.yaml"
ENV = "/etc/vllm/env"
EVERYWHERE = "0.0.0.0"

_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=-]*")
_HEAD = "# Written by `builder deploy`: profile {name}. Change the profile, not this file.\n"


def render(profile: Profile, container: Container, secrets: Secrets, *, listen: str | None = None) -> tuple[File, ...]:
    """The two files for `container`, the same bytes for the same input; the API key is in the environment's.

    It listens on `listen`, else on the profile's address, else on the container's own, else (DHCP) on all of the
    container's. Raises UsageError when that is a public address or reachable without an API key and `listen` does not
    say so, when `listen` is no IP address, and for a value that neither file can hold.
    """
    if listen is not None:
        _check_address(listen)
    host = listen or profile.host or _own(container)
    if wrong := option_wrong("host", host):
        raise UsageError(f"{host!a} {wrong}", where=f"container {container.ctid}")
    if listen is None:
        _refuse_open(host, container, secrets)
    head = _HEAD.format(name=profile.name)
    fixed: dict[str, Value] = {
        "model": profile.model.path,
        "served-model-name": profile.served_name,
        "host": host,
        "port": profile.port,
    }
    if profile.gpus:
        fixed["gpu-memory-utilization"] = profile.share
    pairs = [*fixed.items(), *sorted(profile.options.items())]
    serve = head + "".join(_pair(name, value, profile) for name, value in pairs)
    env = head + "".join(_variables(profile.environment, profile))
    if secrets.api_key is not None:
        env += f"VLLM_API_KEY={_quoted(secrets.api_key)}\n"
    secret = secrets.api_key is not None
    return (
        File(SERVE, serve.encode()),
        File(ENV, env.encode(), mode=0o600 if secret else 0o644, secret=secret),
    )


def _own(container: Container) -> str:
    """The container's own address; all of them where only the container will know."""
    ip = container.network.ip
    return EVERYWHERE if ip in ("dhcp", "manual") else ip.partition("/")[0]


def _check_address(listen: str) -> None:
    try:
        ip_address(listen)
    except ValueError as error:
        hint = "give one of the container's, without a prefix length, or 0.0.0.0 for all"
        raise UsageError(f"{listen!a} is no IP address", where="--listen", hint=hint) from error


def _refuse_open(host: str, container: Container, secrets: Secrets) -> None:
    try:
        address = ip_address(host)
    except ValueError:
        loopback, public = host == "localhost", False
    else:
        loopback, public = address.is_loopback, address.is_global
    if public:
        what = f"would listen on {host}, which is a public address"
        raise UsageError(what, where=f"container {container.ctid}", hint=f"give --listen {host} to have it so")
    if secrets.api_key is None and not loopback:
        what = f"would listen on {host} without an API key"
        raise UsageError(what, where=f"container {container.ctid}", hint="give --api-key-file")


def _pair(name: str, value: Value, profile: Profile) -> str:
    if name not in ("model", "served-model-name") and (wrong := option_wrong(name, value)):
        raise UsageError(f"{name!a} {wrong}", where=f"profile {profile.name}")
    if value is False:
        return f"no-{name}: true\n"
    return f"{name}: {_scalar(value, profile)}\n"


def _scalar(value: Value, profile: Profile) -> str:
    """As YAML 1.1 and 1.2 both read it: text as JSON, which leaves no other meaning; a float with a point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, int):
        return str(value)
    if not value.isprintable():
        raise UsageError(f"{value!a} is not printable text on one line", where=f"profile {profile.name}")
    return json.dumps(value, ensure_ascii=False)


def _variables(environment: Mapping[str, str], profile: Profile) -> Iterator[str]:
    for name, value in sorted(environment.items()):
        if wrong := variable_wrong(name, value):
            raise UsageError(f"{name!a} {wrong}", where=f"profile {profile.name}")
        yield f"{name}={_quoted(value)}\n"


def _quoted(value: str) -> str:
    """As systemd unquotes it: nothing is expanded, and in double quotes only these four letters need a backslash."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'
