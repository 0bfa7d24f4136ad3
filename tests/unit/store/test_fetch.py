"""Fetching: from servers that fail in all the ways that servers do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from builder.errors import BuilderError
from builder.store import Store, fetch
from builder.store.download import Retry

from .conftest import Web, blob, files, say

CONTENT = bytes(range(256)) * 5000
QUICK = Retry(attempts=3, first_wait=0.01, longest_wait=0.05)


class Counter:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.done, self.total = 0, None

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "B") -> Iterator[Counter]:
        self.total = total
        yield self

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass


def part(content: bytes, start: int = 0) -> bytes:
    return content[start : start + 300_000]


def cut(content: bytes, start: int = 0):
    """Promise everything from `start`, send a part, hang up."""
    status = 206 if start else 200
    more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    return say(status, part(content, start), **{"Content-Length": str(len(content) - start)}, **more)


def test_a_fetched_file_is_whole_read_only_and_the_only_file(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT))
    done = fetch(store, [wanted, wanted])
    path = store.path(wanted.sha256)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o7777 == 0o444
    assert files(store) == [f"blobs/sha256/{wanted.sha256[:2]}/{wanted.sha256}"]
    assert (done.files, done.fetched, done.size, done.received) == (1, 1, len(CONTENT), len(CONTENT))


def test_what_is_there_is_not_asked_for(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT))
    fetch(store, [wanted])
    assert fetch(store, [wanted]).fetched == 0
    assert len(web.asked) == 1


def test_an_empty_file(store: Store, web: Web) -> None:
    wanted = blob(b"", web.put("a", b""))
    fetch(store, [wanted])
    assert store.has(wanted)


def test_progress_counts_every_byte_once_even_after_a_restart(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT, cut(CONTENT), say(200, CONTENT)))
    counter = Counter()
    fetch(store, [wanted], progress=counter, retry=QUICK)
    assert (counter.done, counter.total) == (len(CONTENT), len(CONTENT))


def test_a_broken_connection_goes_on_where_it_was(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT, cut(CONTENT), cut(CONTENT, 300_000)))
    done = fetch(store, [wanted], retry=QUICK)
    assert web.asked == [("a", ""), ("a", "bytes=300000-"), ("a", "bytes=600000-")]
    assert done.received == len(CONTENT)
    assert store.has(wanted)


def test_attempts_are_counted_anew_when_bytes_arrive(store: Store, web: Web) -> None:
    answers = [cut(CONTENT, start) for start in range(0, 1_200_000, 300_000)]
    wanted = blob(CONTENT, web.put("a", CONTENT, *answers))
    fetch(store, [wanted], retry=Retry(attempts=2, first_wait=0.01))
    assert len(web.asked) == 5


def test_a_server_without_ranges_restarts_the_file(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT, cut(CONTENT), say(200, CONTENT)))
    fetch(store, [wanted], retry=QUICK)
    assert store.path(wanted.sha256).read_bytes() == CONTENT
    assert len(web.asked) == 2


def test_a_wrong_range_restarts_the_file(store: Store, web: Web) -> None:
    wrong = say(206, CONTENT[10:], **{"Content-Range": f"bytes 10-{len(CONTENT) - 1}/{len(CONTENT)}"})
    wanted = blob(CONTENT, web.put("a", CONTENT, cut(CONTENT), wrong))
    fetch(store, [wanted], retry=QUICK)
    assert web.asked[-1] == ("a", "")
    assert store.path(wanted.sha256).read_bytes() == CONTENT


def test_the_next_run_goes_on_with_what_came(store: Store, web: Web) -> None:
    url = web.put("a", CONTENT, cut(CONTENT), say(500), say(500))
    wanted = blob(CONTENT, url)
    with pytest.raises(BuilderError, match="HTTP 500"):
        fetch(store, [wanted], retry=QUICK)
    assert files(store) == [f"tmp/partial/{wanted.sha256}"]
    web.asked.clear()
    counter = Counter()
    done = fetch(Store(store.root), [wanted], progress=counter)
    assert web.asked == [("a", "bytes=300000-")]
    assert done.received == len(CONTENT) - 300_000
    assert counter.done == len(CONTENT)


def test_a_spoilt_partial_is_fetched_from_the_start(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT))
    store.folder("tmp", "partial")
    (store.root / "tmp/partial" / wanted.sha256).write_bytes(b"x" * 1000)
    fetch(store, [wanted])
    assert [wanted_range for _, wanted_range in web.asked] == ["bytes=1000-", ""]
    assert store.path(wanted.sha256).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_a_partial_as_long_as_the_file_or_longer(store: Store, web: Web, length: int) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT))
    store.folder("tmp", "partial")
    (store.root / "tmp/partial" / wanted.sha256).write_bytes((CONTENT + b"12345")[:length])
    fetch(store, [wanted])
    assert store.path(wanted.sha256).read_bytes() == CONTENT
    assert len(web.asked) == (0 if length == len(CONTENT) else 1)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(store: Store, web: Web, status: int) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT, say(status), say(status)))
    fetch(store, [wanted], retry=QUICK)
    assert len(web.asked) == 3


def test_retry_after_is_honoured(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", CONTENT, say(503, **{"Retry-After": "1"})))
    started = time.monotonic()
    fetch(store, [wanted], retry=Retry(first_wait=0.01))
    assert time.monotonic() - started >= 1


def test_waits_double_and_end() -> None:
    retry = Retry(first_wait=1, longest_wait=60)
    assert all(0.5 <= retry.wait(1, 0) <= 1.5 for _ in range(50))
    assert all(4 <= retry.wait(4, 0) <= 12 for _ in range(50))
    assert retry.wait(1, 7) == 7
    assert retry.wait(1, 3600) == retry.wait(30, 0) == 60


def test_a_slow_server_is_waited_for(store: Store, web: Web) -> None:
    def slow(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        for letter in b"hello":
            time.sleep(0.02)
            handler.wfile.write(bytes([letter]))

    wanted = blob(b"hello", web.put("a", b"", slow))
    fetch(store, [wanted], retry=QUICK)
    assert store.has(wanted)


def test_no_server_at_all(store: Store) -> None:
    wanted = blob(CONTENT, "http://127.0.0.1:9/a", name="a.whl")
    with pytest.raises(BuilderError, match=r"^a\.whl: http://127\.0\.0\.1:9/a: .*Connection refused"):
        fetch(store, [wanted], retry=QUICK)
    assert files(store) == []


def test_mirrors_are_tried_in_order(store: Store, web: Web) -> None:
    urls = [f"{web.url}/gone", web.put("wrong", b"x" * len(CONTENT)), web.put("right", CONTENT), web.put("d", CONTENT)]
    wanted = blob(CONTENT, *urls)
    fetch(store, [wanted], retry=QUICK)
    assert [path for path, _ in web.asked] == ["gone", "wrong", "right"]
    assert store.path(wanted.sha256).read_bytes() == CONTENT


def test_a_mirror_goes_on_with_the_bytes_of_another(store: Store, web: Web) -> None:
    first = web.put("first", CONTENT, cut(CONTENT), say(404))
    wanted = blob(CONTENT, first, f"{web.url}/gone", web.put("second", CONTENT))
    fetch(store, [wanted], retry=QUICK)
    assert web.asked[-1] == ("second", "bytes=300000-")


def test_wrong_bytes_name_url_and_both_hashes_and_leave_nothing(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, web.put("a", b"x" * len(CONTENT)), name="a.deb")
    found = blob(b"x" * len(CONTENT)).sha256
    with pytest.raises(BuilderError) as caught:
        fetch(store, [wanted], retry=QUICK)
    assert f"a.deb: {web.url}/a: expected sha256 {wanted.sha256}, got {found}" in str(caught.value)
    assert files(store) == []
    assert len(web.asked) == 1


@pytest.mark.parametrize("length", [3, 2 * len(CONTENT)])
def test_a_wrong_size_is_seen_before_the_first_byte(store: Store, web: Web, length: int) -> None:
    wanted = blob(CONTENT, web.put("a", b"x" * length))
    with pytest.raises(BuilderError, match=f"/a: expected {len(CONTENT):,} bytes, got {length:,}"):
        fetch(store, [wanted], retry=QUICK)
    assert files(store) == []


def test_no_more_than_the_locked_size_is_written(store: Store, web: Web) -> None:
    most = 0

    def endless(handler) -> None:
        nonlocal most
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b"x" * 100_000)
            except OSError:
                break
            most = max([most, *(path.stat().st_size for path in (store.root / "tmp/partial").iterdir())])
        handler.close_connection = True

    wanted = blob(CONTENT, web.put("a", b"", endless))
    with pytest.raises(BuilderError, match=f"expected {len(CONTENT):,} bytes, got more"):
        fetch(store, [wanted], retry=QUICK)
    assert most <= len(CONTENT)
    assert files(store) == []


def test_a_file_that_ends_early_for_good(store: Store, web: Web) -> None:
    short = say(200, CONTENT[:1000], **{"Content-Length": ""})
    wanted = blob(CONTENT, web.put("a", CONTENT[:1000], short))
    with pytest.raises(BuilderError, match="/a: has 1000 bytes, fewer than"):
        fetch(store, [wanted], retry=QUICK)


def test_content_encoding_is_not_wanted_and_never_undone(store: Store, web: Web) -> None:
    body = b"\x1f\x8b is what the file starts with"
    wanted = blob(body, web.put("a.gz", b"", say(200, body, **{"Content-Encoding": "gzip"})))
    fetch(store, [wanted], retry=QUICK)
    assert store.path(wanted.sha256).read_bytes() == body
    assert web.headers[0]["Accept-Encoding"] == "identity"


def test_a_redirect_is_followed(store: Store, web: Web) -> None:
    url = web.put("old", b"", say(302, Location=f"{web.url}/new"))
    web.put("new", CONTENT)
    wanted = blob(CONTENT, url)
    fetch(store, [wanted])
    assert store.has(wanted)


def test_a_redirect_does_not_lead_to_files_of_this_machine(store: Store, web: Web, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    wanted = blob(CONTENT, web.put("a", b"", say(302, Location=f"file://{tmp_path}/secret")))
    with pytest.raises(BuilderError, match=r"/a: .*No connection adapters"):
        fetch(store, [wanted])
    assert not store.has(wanted)


def test_file_urls(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(CONTENT)
    wanted = blob(CONTENT, (tmp_path / "gone").as_uri(), (tmp_path / "a b").as_uri())
    fetch(store, [wanted])
    assert store.path(wanted.sha256).read_bytes() == CONTENT


def test_a_file_url_of_a_pipe_is_refused(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BuilderError, match="/pipe: is not a regular file"):
        fetch(store, [blob(CONTENT, (tmp_path / "pipe").as_uri())])


def test_another_scheme_is_refused(store: Store) -> None:
    with pytest.raises(BuilderError, match="ftp://host/a: is not an http, https or file URL"):
        fetch(store, [blob(CONTENT, "ftp://host/a")])


def test_a_lock_without_url(store: Store) -> None:
    with pytest.raises(BuilderError, match="file: the lock has no URL"):
        fetch(store, [blob(CONTENT)])


def test_passwords_are_not_shown(store: Store) -> None:
    with pytest.raises(BuilderError) as caught:
        fetch(store, [blob(CONTENT, "http://me:secret@127.0.0.1:9/a")], retry=QUICK)
    assert "secret" not in str(caught.value)
    assert "http://127.0.0.1:9/a" in str(caught.value)


def test_a_file_that_is_gone_names_file_urls_and_the_way_out(store: Store, web: Web) -> None:
    wanted = blob(CONTENT, f"{web.url}/a", f"{web.url}/b", name="libc6_2.36-9_amd64.deb")
    with pytest.raises(BuilderError) as caught:
        fetch(store, [wanted])
    assert str(caught.value) == (
        f"libc6_2.36-9_amd64.deb: {web.url}/a: HTTP 404 Not Found, {web.url}/b: HTTP 404 Not Found; "
        "run `builder lock RECIPE --upgrade libc6`"
    )


def test_all_files_that_are_gone_are_told_at_once_and_the_others_come(store: Store, web: Web) -> None:
    there = blob(CONTENT, web.put("a", CONTENT))
    gone = [blob(name.encode(), f"{web.url}/{name}", name=name) for name in ("x_1_all.deb", "y-2.0-py3-none-any.whl")]
    with pytest.raises(BuilderError) as caught:
        fetch(store, [*gone, there], jobs=1)
    assert "2 files are gone" in str(caught.value)
    assert "--upgrade x" in str(caught.value)
    assert "--upgrade y" in str(caught.value)
    assert store.has(there)


def test_more_bytes_than_the_disk_has(store: Store) -> None:
    huge = blob(b"", "http://127.0.0.1:9/a")
    huge = type(huge)(huge.sha256, 1 << 60, "huge", huge.urls)
    with pytest.raises(BuilderError, match=r"bytes to fetch, .* free; free some space, run `builder store gc`"):
        fetch(store, [huge])


def test_many_files_in_parallel(store: Store, web: Web) -> None:
    names = [f"f{number}" for number in range(60)]
    wanted = [blob(name.encode() * 999, web.put(name, name.encode() * 999)) for name in names]
    done = fetch(store, wanted, jobs=8)
    assert done.fetched == 60
    assert all(store.has(one) for one in wanted)
    assert not list((store.root / "tmp/partial").iterdir())


def test_two_stores_fetch_the_same_file_once(store: Store, web: Web) -> None:
    begun = threading.Event()

    def slow(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:1000])
        begun.set()
        time.sleep(0.3)
        handler.wfile.write(CONTENT[1000:])

    wanted = blob(CONTENT, web.put("a", CONTENT, slow))
    other = threading.Thread(target=fetch, args=(Store(store.root), [wanted]))
    other.start()
    assert begun.wait(60)
    counter = Counter()
    done = fetch(store, [wanted], progress=counter)
    other.join(60)
    assert len(web.asked) == 1
    assert done.received == 0
    assert counter.done == len(CONTENT)
    assert len(files(store)) == 1


CHILD = """
import sys
from pathlib import Path
from builder.lock.model import Blob
from builder.store import Store, fetch
root, sha256, size, url = sys.argv[1:]
fetch(Store(Path(root)), [Blob(sha256, int(size), "file", (url,))])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_fetch_ends_at_once_and_the_next_goes_on(store: Store, web: Web, number: signal.Signals) -> None:
    release = threading.Event()

    def stall(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[: 1 << 20])
        handler.wfile.flush()
        release.wait(120)
        handler.close_connection = True

    wanted = blob(CONTENT, web.put("a", CONTENT, stall))
    argv = [sys.executable, "-c", CHILD, str(store.root), wanted.sha256, str(wanted.size), wanted.urls[0]]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        partial = store.root / "tmp/partial" / wanted.sha256
        deadline = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.wait(60)
    release.set()
    assert not store.path(wanted.sha256).exists()
    done = fetch(store, [wanted])
    assert done.received == len(CONTENT) - (1 << 20)
    assert store.path(wanted.sha256).read_bytes() == CONTENT
    assert len(list((store.root / "tmp").glob("session-*"))) == 1


def test_a_session_of_ones_own_is_used(store: Store, web: Web) -> None:
    with requests.Session() as session:
        session.headers["X-Test"] = "yes"
        fetch(store, [blob(CONTENT, web.put("a", CONTENT))], session=session)
    assert web.headers[0]["X-Test"] == "yes"
