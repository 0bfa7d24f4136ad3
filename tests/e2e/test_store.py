"""The store on a full disk, under kill -9 at every rename, and shared by root and an ordinary user."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builder import canonical, tree
from builder.lock.model import Blob
from builder.store import Store, upkeep

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

BODY = {"packages": ["systemd"]}
KEY = canonical.digest(BODY)
FACTS = {"recipe": "tiny", "stage": "base", "kind": "debian", "body": BODY, "over": []}
CONTENT = bytes(range(256)) * 8192  # 2 MiB

FETCH = """
import json, sys
from pathlib import Path
from builder.lock.model import Blob
from builder.store import Store, fetch
root, *blobs = sys.argv[1:]
fetch(Store(Path(root)), [Blob(**json.loads(blob)) for blob in blobs], jobs=1)
"""

BUILD = f"""
import sys
from pathlib import Path
from builder import tree
from builder.store import Store
store = Store(Path(sys.argv[1]))
with store.draft({KEY!r}) as draft:
    (draft.upper / "file").write_bytes(b"y" * 1_000_000)
    draft.commit(tree.scan(draft.upper), {FACTS})
store.write_text(Path("last/recipe/base.json"), "text")
"""


@pytest.fixture
def sources(tmp_path: Path) -> list[Blob]:
    """Two locked files behind file URLs."""
    made = []
    for number in range(2):
        content = CONTENT + bytes([number])
        (tmp_path / f"source-{number}").write_bytes(content)
        url = (tmp_path / f"source-{number}").as_uri()
        made.append(Blob(hashlib.sha256(content).hexdigest(), len(content), f"source-{number}", (url,)))
    return made


def work(code: str, root: Path, sources: list[Blob], *before: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, behind the command `before`."""
    words = [json.dumps(vars(source)) for source in sources]
    argv = [*before, sys.executable, "-c", code, str(root), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def sound(store: Store) -> None:
    """Everything with a final name is whole."""
    assert upkeep.verify(store) == []
    for layer in store.layers():
        assert layer.changed() == []
        assert tree.verify(layer.index, layer.tree) == []


def times(code: str, root: Path, sources: list[Blob], call: str, folder: Path) -> int:
    """How often one thread of `code` makes the system call at most, on its way through."""
    done = work(code, root, sources, "strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", f"trace={call}")
    assert done.returncode == 0, done.stdout + done.stderr
    threads = re.findall(rf"(?m)^(\d+) +{call}\(", (folder / "trace").read_text())
    return max(Counter(threads).values())


@pytest.mark.parametrize("call", ["rename", "flock"])
@pytest.mark.parametrize("code", [FETCH, BUILD], ids=["fetch", "build"])
def test_killed_at_any_step_the_store_is_sound_and_the_next_run_goes_on(
    tmp_path: Path, sources: list[Blob], code: str, call: str
) -> None:
    count = times(code, tmp_path / "whole", sources, call, tmp_path)
    assert count >= 2
    for number in range(1, count + 1):
        root = tmp_path / f"killed-{number}"
        inject = f"inject={call}:signal=KILL:when={number}"
        done = work(code, root, sources, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        assert done.returncode in (-9, 137), (number, done.stderr)
        sound(Store(root))
        again = work(code, root, sources)
        assert again.returncode == 0, (number, again.stderr)
        store = Store(root)
        if code == FETCH:
            assert all(store.sound(source) for source in sources)
        else:
            assert store.layer(KEY) is not None
        store.close()
        left = sorted(path.name for path in (root / "tmp").iterdir())
        assert left == ["partial"], (number, left)
        assert list((root / "tmp/partial").iterdir()) == [], number


def on_small_disk(folder: Path, size_kib: int, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `argv` where `folder` is a file system of this size that no other process sees."""
    mount = f'mount -t tmpfs -o size={size_kib}k tmpfs "$1"; shift; exec "$@"'
    command = ["unshare", "--mount", "/bin/sh", "-ec", mount, "sh", str(folder), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


FILL = """
import os, sys
from pathlib import Path
from builder.errors import BuilderError
from builder.store import Store, fetch, upkeep
exec(sys.argv[2])
root = Path(sys.argv[1])
before = sorted(str(path) for path in (root / "blobs").rglob("*") if path.is_file())
try:
    attempt(Store(root))
except BuilderError as error:
    print(error)
left = [str(path) for path in root.rglob("*") if path.is_file() and path.name != "lock" and "/filler" not in str(path)]
print(sorted(left))
os.unlink(root / "filler")
attempt(Store(root))
print(upkeep.verify(Store(root)))
"""

ATTEMPTS = {
    "blob": "store.add_stream([b'x' * 100_000] * 10)",
    "text": "store.write_text(Path('last/a/b.json'), 'x' * 1_000_000)",
    "layer": """
    from builder import canonical, tree
    body = 'x' * 100_000
    with store.draft(canonical.digest(body)) as draft:
        for number in range(20):
            (draft.upper / f'{number:0200}').touch()
        index = tree.scan(draft.upper)
        fill(store.root)
        draft.commit(index, {'recipe': 'tiny', 'stage': 'base', 'kind': 'debian', 'body': body, 'over': []})
""",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    code = f"""
def fill(root):
    if (root / "again").exists():
        return
    (root / "again").touch()
    with open(root / "filler", "ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass

def attempt(store):
    if {name != "layer"}:
        _ = store.session
        fill(store.root)
    {ATTEMPTS[name]}
"""
    done = on_small_disk(tmp_path, 4096, sys.executable, "-c", FILL, str(tmp_path), code)
    assert done.returncode == 0, done.stdout + done.stderr
    said, left, damaged = done.stdout.splitlines()
    assert "No space left on device; free some space, run `builder store gc`, or set BUILDER_STORE" in said
    assert said.startswith(str(tmp_path))
    assert left == str([f"{tmp_path}/again"])
    assert damaged == "[]"


def test_a_download_that_fills_the_disk_is_resumed_after_gc(tmp_path: Path, sources: list[Blob]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"""
from pathlib import Path
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.store import Store, fetch, download, upkeep
store = Store(Path({str(disk)!r}))
one, two = {sources!r}
fetch(store, [one])
store.close()
download._check_room = lambda store, missing: None
try:
    fetch(store, [two])
except BuilderError as error:
    print(error)
store.close()
print(len(upkeep.gc(store, older_than=None, max_size=two.size).removed))
print(fetch(store, [two]).received < two.size, store.sound(two))
"""
    done = on_small_disk(disk, 3584, sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    said, removed, resumed = done.stdout.splitlines()
    assert "No space left on device; free some space, run `builder store gc`" in said
    assert (removed, resumed) == ("1", "True True")


def test_room_is_looked_at_before_the_first_byte(tmp_path: Path, sources: list[Blob]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [json.dumps(vars(source)) for source in sources]
    done = on_small_disk(disk, 3 * 1024, sys.executable, "-c", FETCH, str(disk), *words)
    assert re.search(r"BuilderError: .*/disk: 4,194,306 bytes to fetch, [\d,]+ free; free some space", done.stderr)


def test_root_and_a_user_share_blobs_and_not_trees(root_user: Any, ordinary_user: Any, tmp_path: Path) -> None:
    root = ordinary_user.home / "store"
    url = "http://127.0.0.1:9/never-asked"
    blob = Blob(hashlib.sha256(b"shared").hexdigest(), 6, "shared", (url,))
    code = f"""
from pathlib import Path
from builder import tree
from builder.lock.model import Blob
from builder.sandbox.userns import become_root
from builder.store import Store, fetch
become_root()
store = Store(Path({str(root)!r}))
store.root.mkdir(exist_ok=True)
if ADD:
    store.add_stream([b"shared"])
fetch(store, [{blob!r}])
print(store.layer({KEY!r}) is not None)
with store.draft({KEY!r}) as draft:
    (draft.upper / "file").touch()
    import os
    os.chown(draft.upper / "file", 33, 33)
    layer = draft.commit(tree.scan(draft.upper), {FACTS})
print(layer.changed(), store.idmap)
print(store.add_stream([NEW]))
"""

    def run(user: Any, add: bool, new: bytes) -> list[str]:
        done = user.run([user.python, "-c", f"ADD = {add}\nNEW = {new!r}\n{code}"])
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()

    first = run(ordinary_user, True, b"1")
    second = run(root_user, False, b"2")
    third = run(ordinary_user, False, b"3")
    assert [said[0] for said in (first, second, third)] == ["False", "False", "True"]
    assert second[1] == "[] root"
    assert first[1] == third[1]
    assert first[1].startswith("[] ids-")
    done = ordinary_user.run(
        ["/usr/bin/env", f"BUILDER_STORE={root}", *_builder(ordinary_user), "gc", "--max-size", "0"]
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"removed 4 blobs, 1 layer" in done.stdout
    assert not (root / "layers" / first[1].split()[1] / KEY).exists()
    assert (root / "layers/root" / KEY / "tree/file").exists()


def _builder(user: Any) -> list[str]:
    return [user.python, "-c", "from builder.cli import main; main()", "store"]
