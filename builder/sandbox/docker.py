"""The builder itself in one Docker container: for machines where only Docker is allowed.

The container's root is the machine's own, read-only, as far as a build needs it: /usr, dpkg's database and what of /etc
tells the tools where things lie. So the same apt, dpkg and mmdebstrap do the same work, and nothing is downloaded. The
image, made here, holds empty folders and the links of a merged /usr alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import APIError, DockerException
from docker.types import Mount

import builder
from builder.errors import BuilderError

_REPOSITORY = "builder-host"
_LABEL = "org.builder.engine"
_ETC = (
    *("alternatives", "apt", "debian_version", "dpkg", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("nsswitch.conf", "passwd", "perl"),
)
"""What of /etc the tools read; nothing of it is secret."""
_PLACES = ("usr", "etc", "var/lib/dpkg", "proc", "sys", "dev", "run", "tmp", "root")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_LOCAL = ("http+docker://localhost", "http+docker://localunixsocket")

Output = Callable[[bytes], None]


@dataclass(frozen=True)
class Job:
    """One run of the builder's command line: its words, the folders that it needs, and what its environment adds."""

    words: Sequence[str]
    writable: Sequence[Path]  # they lie at the same place inside
    readable: Sequence[Path]
    env: Mapping[str, str]


def run(job: Job, *, out: Output, err: Output) -> int:
    """Run the builder in a container of its own without network; its exit status.

    `out` and `err` get what it says, piece by piece. The container is removed whatever happens. Raises BuilderError
    when Docker cannot be reached, or is on another machine, or refuses.
    """
    try:
        with closing(_connect()) as client:
            container = client.containers.get(_create(client, job))
            try:
                said = container.attach(stream=True, demux=True, stdout=True, stderr=True)
                container.start()
                for stdout, stderr in said:
                    if stdout:
                        out(stdout)
                    if stderr:
                        err(stderr)
                return int(container.wait()["StatusCode"])
            finally:
                container.remove(force=True)
    except APIError as error:
        raise BuilderError(str(error.explanation or error), where="docker") from error
    except DockerException as error:
        raise BuilderError(str(error), where="docker", hint="see `docker info`") from error


def missing() -> str:
    """Why no container can be run here, as one line; "" when one can."""
    try:
        with closing(_connect()) as client:
            client.ping()
    except BuilderError as error:
        return error.what
    except DockerException as error:
        return str(BuilderError(str(error)))
    return ""


def _connect() -> docker.DockerClient:
    """Docker as $DOCKER_HOST names it. Raises BuilderError."""
    try:
        client = docker.from_env(timeout=60)
    except DockerException as error:
        hint = "start it, or set DOCKER_HOST; see `docker info`"
        raise BuilderError(f"Docker cannot be reached ({error})", where="docker", hint=hint) from error
    if client.api.base_url not in _LOCAL:
        client.close()
        raise BuilderError(
            "Docker runs on another machine, where the store does not lie",
            where=os.environ.get("DOCKER_HOST", "docker"),
            hint="set DOCKER_HOST to a socket of this machine, or build there",
        )
    return client


def _create(client: docker.DockerClient, job: Job) -> str:
    """A container that may do what the sandbox needs (mount, make namespaces, see all of /proc); no network."""
    may = client.api.create_host_config(
        mounts=_mounts(job),
        network_mode="none",
        cap_add=["SYS_ADMIN"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
    )
    made = client.api.create_container(
        _image(client),
        [sys.executable, "-c", "from builder.cli import main; main()", *job.words],
        environment={**_ENVIRONMENT, "PYTHONPATH": _python_path(), **job.env},
        working_dir="/",
        hostname="builder",
        labels=[_LABEL],
        host_config={**may, "MaskedPaths": [], "ReadonlyPaths": []},  # mount(2) of a new /proc is refused otherwise
    )
    return str(made["Id"])


def _mounts(job: Job) -> list[Mount]:
    """The binds, each at the place that it has on this machine; a folder inside of another one needs none."""
    system = [Path("/usr"), Path("/var/lib/dpkg"), *(Path("/etc", name) for name in (*_ETC, *_python_settings()))]
    system += [Path(name) for name in _links() if not os.path.islink(name)]
    wanted = [*system, *_python(), *(path.absolute() for path in job.readable)]
    binds = [Mount(str(path), str(path), "bind", read_only=True) for path in _outermost(wanted)]
    return binds + [Mount(str(path), str(path), "bind") for path in _outermost(map(Path.absolute, job.writable))]


def _outermost(paths: Iterable[Path]) -> list[Path]:
    found = {path for path in paths if path.exists()}
    return sorted(path for path in found if not any(parent in found for parent in path.parents))


def _links() -> list[str]:
    """The folders that a merged /usr has links for."""
    return [f"/{name}" for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin") if os.path.lexists(f"/{name}")]


def _python_settings() -> list[str]:
    return [path.name for path in Path("/etc").glob("python3*")]


def _python() -> list[Path]:
    """Where this interpreter, its packages and the builder lie."""
    return [Path(sys.prefix), Path(sys.base_prefix), *map(Path, _packages())]


def _packages() -> list[str]:
    house = str(Path(builder.__file__).parents[1])
    return [path for path in dict.fromkeys([house, *sys.path]) if path and os.path.isdir(path)]


def _python_path() -> str:
    return ":".join(path for path in _packages() if not path.startswith((sys.prefix, sys.base_prefix, "/usr/")))


def _image(client: docker.DockerClient) -> str:
    """The name of the image, which is made unless it is there."""
    data = _skeleton()
    name = f"{_REPOSITORY}:{hashlib.sha256(data).hexdigest()[:12]}"
    if not client.images.list(name):
        repository, _, tag = name.partition(":")
        client.api.import_image_from_data(data, repository=repository, tag=tag)
    return name


def _skeleton() -> bytes:
    """A tar of empty folders and of the machine's own links into /usr."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        names = [*_PLACES, *(name[1:] for name in _links() if not os.path.islink(name))]
        for name in names:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        for name in _links():
            if os.path.islink(name):
                link = tarfile.TarInfo(name[1:])
                link.type, link.linkname = tarfile.SYMTYPE, os.readlink(name)
                tar.addfile(link)
    return file.getvalue()
