"""What `builder doctor` asks this machine. Every check tries the thing itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from builder.errors import BuilderError
from builder.sandbox.engine import run
from builder.sandbox.spec import Bind, Spec
from builder.sandbox.userns import IDS, become_root, newidmap, subordinate

GIB = 1 << 30
SMALLEST, COMFORTABLE = 2 * GIB, 40 * GIB
"""Bytes at the store for the recipes smoke and vllm-blackwell."""
MEMORY = 16 * GIB
"""Bytes of memory that a stage may take when its recipe says nothing (MemoryMiB)."""

TOOLS = (
    ("mmdebstrap", ("mmdebstrap", "--version"), "mmdebstrap"),
    ("apt", ("apt-get", "--version"), "apt"),
    ("dpkg", ("dpkg-deb", "--version"), "dpkg"),
    ("gpgv", ("gpgv", "--version"), "gpgv"),
    ("tar", ("tar", "--version"), "tar"),
    ("zstd", ("zstd", "--version"), "zstd"),
)
"""A tool, the command that shows that it runs, and the Debian package that brings it."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Check:
    """One thing that was tried: `status` is ok, warn or fail, `mend` the command or step that makes it ok."""

    name: str
    status: str
    found: str
    mend: str = ""


def checks(store: Path) -> Iterator[Check]:
    """Try all that a build needs of this machine, for the user who calls; `store` is the store's folder."""
    yield python()
    yield zstandard_wheel()
    if os.geteuid() != 0:
        yield subordinate_ids("subuid")
        yield subordinate_ids("subgid")
        yield mapping_tools()
        yield user_namespace()
    yield writable(store)
    yield sandbox(store)
    for name, argv, package in TOOLS:
        yield tool(name, argv, package)
    yield keyring()
    yield disk(store)
    yield memory()
    yield lxc()


def python() -> Check:
    wanted = SpecifierSet(importlib.metadata.metadata("builder")["Requires-Python"])
    version = platform.python_version()
    if wanted.contains(version, prereleases=True):
        return Check("python", "ok", version)
    return Check("python", "fail", f"{version}; needs {wanted}", "make setup PYTHON=/path/to/a/newer/python3")


def zstandard_wheel() -> Check:
    """The wheel that compresses templates: another version may make other bytes."""
    wanted = next(
        requirement.specifier
        for requirement in map(Requirement, importlib.metadata.requires("builder") or ())
        if requirement.name == "zstandard"
    )
    found = f"{zstandard.__version__}, backend {zstandard.backend}"
    if zstandard.__version__ in wanted and zstandard.backend == "cext":
        return Check("zstandard", "ok", found)
    return Check("zstandard", "fail", f"{found}; needs {wanted}, backend cext", f"pip install 'zstandard{wanted}'")


def subordinate_ids(table: str) -> Check:
    try:
        ranges = subordinate(Path("/etc", table))
    except BuilderError as error:
        return Check(table, "fail", error.what, error.hint or "")
    return Check(table, "ok", f"{IDS} from {', '.join(str(first) for first, _ in ranges)}")


def mapping_tools() -> Check:
    try:
        found = newidmap("newuidmap"), newidmap("newgidmap")
    except BuilderError as error:
        return Check("uidmap", "fail", f"{error.where}: {error.what}", error.hint or "")
    return Check("uidmap", "ok", ", ".join(found))


def user_namespace() -> Check:
    """Become uid 0 of a user namespace, in a child."""
    trouble = _in_child(become_root)
    if trouble:
        return Check("user namespace", "fail", trouble["what"], trouble["hint"])
    return Check("user namespace", "ok", "entered as uid 0")


def writable(store: Path) -> Check:
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            return Check("store", "ok", str(store))
    except OSError as error:
        return Check("store", "fail", f"{store}: {error.strerror}", "set BUILDER_STORE to a folder of yours")


def sandbox(store: Path) -> Check:
    """A real run in the store: namespaces, overlay, /proc, a new file and a whiteout."""
    if not store.is_dir():
        return Check("sandbox", "fail", f"nothing to try it in: {store}", "mend the store first")
    trouble = _in_child(lambda: _try_sandbox(store))
    if trouble:
        return Check("sandbox", "fail", trouble["what"], trouble["hint"])
    return Check("sandbox", "ok", f"overlay and private root on Linux {platform.release()}")


def tool(name: str, argv: tuple[str, ...], package: str) -> Check:
    try:
        done = subprocess.run(argv, capture_output=True, check=False, env={"PATH": os.environ.get("PATH", "")})
    except OSError as error:
        return Check(name, "fail", f"{argv[0]}: {error.strerror}", f"sudo apt install {package}")
    said = (done.stdout or done.stderr).decode(errors="replace").strip().partition("\n")[0]
    if done.returncode != 0:
        return Check(name, "fail", f"exit {done.returncode}: {said}", f"sudo apt install --reinstall {package}")
    version = re.search(r"\d+(\.\d+)+", said)
    return Check(name, "ok", version.group() if version else said)


def keyring() -> Check:
    """Debian's keys: the file must begin as an OpenPGP public key does (RFC 4880, 4.2 and 4.3: tag 6)."""
    mend = "sudo apt install --reinstall debian-archive-keyring"
    try:
        first = KEYRING.read_bytes()[:1]
    except OSError as error:
        return Check("keyring", "fail", f"{KEYRING}: {error.strerror}", mend)
    if first in (b"\x98", b"\x99", b"\xc6"):
        return Check("keyring", "ok", str(KEYRING))
    return Check("keyring", "fail", f"{KEYRING}: no OpenPGP keys", mend)


def disk(store: Path) -> Check:
    place = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{free // GIB} GiB free at {store}"
    mend = "free some, or set BUILDER_STORE to a larger disk"
    if free < SMALLEST:
        return Check("disk", "fail", f"{found}; the smallest recipe needs {SMALLEST // GIB}", mend)
    if free < COMFORTABLE:
        return Check("disk", "warn", f"{found}; vllm-blackwell needs {COMFORTABLE // GIB}", mend)
    return Check("disk", "ok", found)


def memory() -> Check:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    found = f"{available / GIB:.1f} GiB available"
    if available < MEMORY:
        return Check("memory", "warn", f"{found}; a stage may take {MEMORY // GIB}", "set MemoryMiB in the recipe")
    return Check("memory", "ok", found)


def lxc() -> Check:
    found = tool("lxc", ("lxc-start", "--version"), "lxc")
    if found.status == "ok":
        return found
    return Check("lxc", "warn", f"{found.found}; only starting containers here needs it", found.mend)


def _in_child(attempt: Callable[[], None]) -> dict[str, str]:
    """Call `attempt` in a forked child; {} when it returned, else its BuilderError as {"what", "hint"}."""
    answer, say = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            attempt()
            status = 0
        except BuilderError as error:
            what = error.what if error.where is None else f"{error.where}: {error.what}"
            os.write(say, json.dumps({"what": what, "hint": error.hint or ""}).encode())
        except OSError as error:
            os.write(say, json.dumps({"what": str(error), "hint": ""}).encode())
        finally:
            os._exit(status)
    os.close(say)
    with os.fdopen(answer, "rb") as answers:
        said = answers.read()
    _, status = os.waitpid(child, 0)
    if status == 0:
        return {}
    trouble: dict[str, str] = json.loads(said) if said else {"what": f"the try ended with status {status}", "hint": ""}
    return trouble


def _try_sandbox(store: Path) -> None:
    """Create and delete a file over a one-layer root whose programs are the host's own /usr, bound in."""
    become_root()
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=store) as name:
        scratch = Path(name)
        layer, upper, work = scratch / "layer", scratch / "upper", scratch / "work"
        for folder in (layer / "usr", upper, work):
            folder.mkdir(parents=True)
        binds = [Bind(Path("/usr"), "/usr")]
        for path in (Path("/bin"), Path("/lib"), Path("/lib64")):
            if path.is_symlink():
                (layer / path.name).symlink_to(os.readlink(path))
            elif path.is_dir():
                (layer / path.name).mkdir()
                binds.append(Bind(path, str(path)))
        (layer / "old").touch()
        argv = (
            "/bin/sh",
            "-c",
            "rm /old && echo proof > /new && chown 65534:65534 /new && test -r /proc/self/status && test -c /dev/null",
        )
        run(Spec("doctor", argv, layers=(layer,), upper=upper, work=work, binds=tuple(binds)))
        if (upper / "new").read_text() != "proof\n" or not stat.S_ISCHR((upper / "old").lstat().st_mode):
            raise BuilderError("the overlay did not keep what was changed", where=store, hint="use another file system")
