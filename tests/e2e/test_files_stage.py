"""What a `files` and a `source` stage leave in the template, looked at from inside it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError, UsageError
from builder.lock.model import Lock
from builder.recipe.model import Url

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.usefixtures("no_leftovers")]


def put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def archive(path: Path, members: dict[str, str | None]) -> None:
    """A tar.gz of files, executable when they begin with '#!'; None makes a folder."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1_000_000_000
            if text is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size, info.mode = len(text), 0o755 if text.startswith("#!") else 0o640
                tar.addfile(info, io.BytesIO(text.encode()))


def test_trees_land_where_the_template_would_look_for_them(bench: Any) -> None:
    files = bench.folder / "files"
    put(files / "bin/hello", "#!/bin/sh\necho hello\n", 0o700)  # /bin is a link to /usr/bin
    put(files / "etc/hello.conf", "x\n", 0o600)
    (files / "etc/link").symlink_to("hello.conf")
    (files / "srv/empty").mkdir(parents=True)
    put(bench.folder / "motd", "welcome\n")
    os.chown(files / "etc/hello.conf", 1234, 1234)
    archive(bench.folder / "more.tar.gz", {"tool": "#!/bin/sh\necho tool\n", "lib": None, "lib/data": "data"})
    trees = ["files:/", "motd:/etc/motd", "motd:/srv/", "more.tar.gz:/opt/more"]
    built = bench.build(("files", {"ExtraTrees": trees}))
    look = "stat -c '%n %F %a %u:%g %Y' /usr/bin/hello /etc/hello.conf /etc/link /srv/empty /etc/motd /srv/motd"
    assert bench.run(built, "sh", "-c", f"{look} /opt/more/tool /opt/more/lib/data; readlink /bin; hello").split(
        "\n"
    ) == [
        "/usr/bin/hello regular file 755 0:0 1760572800",
        "/etc/hello.conf regular file 644 0:0 1760572800",
        "/etc/link symbolic link 777 0:0 1760572800",
        "/srv/empty directory 755 0:0 1760572800",
        "/etc/motd regular file 644 0:0 1760572800",
        "/srv/motd regular file 644 0:0 1760572800",
        "/opt/more/tool regular file 755 0:0 1000000000",
        "/opt/more/lib/data regular file 644 0:0 1000000000",
        "usr/bin",
        "hello",
        "",
    ]


def test_a_locked_archive_is_unpacked(bench: Any) -> None:
    archive(bench.folder / "tool.tar.gz", {"run": "#!/bin/sh\necho locked\n"})
    blob = bench.blob(bench.folder / "tool.tar.gz")
    bench.urls = (Url("tool", "https://example.org/tool.tar.gz", blob.sha256, blob.size),)
    bench.lock = Lock("bench", "", urls={"tool": blob})
    assert bench.run(bench.build(("files", {"ExtraTrees": ["url:tool:/opt/tool"]})), "/opt/tool/run") == "locked\n"


def test_users_units_masks_links_modes_and_scripts(bench: Any) -> None:
    unit = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    put(bench.folder / "files/usr/lib/systemd/system/demo.service", unit)
    put(bench.folder / "greeting", "port @PORT@ of @NAME@, not user@example\n")
    put(bench.folder / "script", "#!/bin/sh -e\necho $SOURCE_DATE_EPOCH $1 >/srv/script\nrm /etc/issue\n", 0o755)
    settings = {
        "ExtraTrees": ["files:/"],
        "Templates": ["greeting:/etc/greeting"],
        "Values": {"PORT": "8000", "NAME": "demo"},
        "Users": [
            {"Name": "demo", "Uid": 990, "Gid": 0, "Home": "/var/lib/demo", "Shell": "/usr/sbin/nologin"}
            | {"Groups": ["video"], "Comment": "Demo server"},
            {"Name": "ada", "Uid": 1000, "Gid": 1005, "Home": "/home/ada", "Shell": "/bin/bash", "Groups": []}
            | {"Comment": ""},
        ],
        "EnableUnits": ["demo.service"],
        "Masks": [{"Unit": "fstrim.timer", "Reason": "the host trims"}],
        "Links": {"/usr/local/bin/sh2": "../../../bin/sh"},
        "Modes": {"/etc/greeting": "0640 root:demo", "/usr/bin/env": "4755"},
        "PostInstallationScripts": ["script"],
        "RemoveFiles": ["/usr/share/doc/base-files/*.gz", "/etc/debian_version"],
    }
    built = bench.build(("files", settings))

    def inside(command: str) -> list[str]:
        return bench.run(built, "sh", "-c", command).splitlines()

    assert inside("cat /etc/greeting; stat -c %a:%U:%G /etc/greeting /usr/bin/env") == [
        "port 8000 of demo, not user@example",
        "640:root:demo",
        "4755:root:root",
    ]
    assert inside("id demo; getent passwd demo ada; stat -c %a:%U:%G /var/lib/demo") == [
        "uid=990(demo) gid=990(demo) groups=990(demo),44(video)",
        "demo:x:990:990:Demo server:/var/lib/demo:/usr/sbin/nologin",
        "ada:x:1000:1005::/home/ada:/bin/bash",
        "750:demo:demo",
    ]
    assert inside("grep -E '^(demo|ada):' /etc/shadow") == ["demo:!:20377::::::", "ada:!:20377::::::"]
    assert inside("systemctl --root=/ is-enabled demo.service fstrim.timer || true") == ["enabled", "masked"]
    assert inside("cat /usr/share/doc/builder/masked-units/*") == ["fstrim.timer: the host trims"]
    assert inside("readlink -f /usr/local/bin/sh2; cat /srv/script") == ["/usr/bin/dash", "1760572800 final"]
    assert inside("ls /etc/issue /etc/debian_version /usr/share/doc/base-files/*.gz 2>/dev/null || true") == []


def test_two_stores_and_another_umask_give_the_same_bytes(new_bench: Callable[[str], Any]) -> None:
    def digest(name: str, umask: int) -> str:
        bench = new_bench(name)
        put(bench.folder / "files/etc/x", "x\n")
        (bench.folder / "files").chmod(0o777 & ~umask)
        os.utime(bench.folder / "files/etc/x", (umask, umask))
        before = os.umask(umask)
        try:
            user = {
                "Name": "u",
                "Uid": 990,
                "Gid": 0,
                "Home": "/srv/u",
                "Shell": "/bin/sh",
                "Groups": [],
                "Comment": "",
            }
            found: str = bench.build(("files", {"ExtraTrees": ["files:/"], "Users": [user]}))[0].layer.digest
            return found
        finally:
            os.umask(before)

    assert digest("one", 0o022) == digest("another-much-longer-name", 0o077)


def test_links_of_the_template_never_lead_out_of_it(bench: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("hostile", "harmless", "climbing"):
        put(bench.folder / f"files/{name}/file", f"{name}\n")
    links = {"/hostile": str(outside), "/harmless": "/usr/share", "/climbing": "../../../../../../.." + str(outside)}
    built = bench.build(("files", {"Links": links}), ("files", {"ExtraTrees": ["files:/"]}))
    assert list(outside.iterdir()) == []
    assert bench.run(built, "cat", "/hostile/file", "/usr/share/file") == "hostile\nharmless\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EnableUnits": ["nothing.service"]}, "nothing.service"),
        ({"Modes": {"/no/such": "0755"}}, "/no/such"),
        ({"PostInstallationScripts": ["fails"]}, "no luck"),
        ({"Links": {"/run/x": "y"}}, "/run/x: lies in /run, which is no part of a template"),
    ],
)
def test_failures_name_the_stage_and_the_thing(bench: Any, settings: dict[str, Any], message: str) -> None:
    put(bench.folder / "fails", "#!/bin/sh\necho no luck >&2\nexit 3\n", 0o755)
    with pytest.raises(BuilderError) as failure:
        bench.build(("files", settings))
    assert message in str(failure.value)


PROJECT = {
    "demo-1.0/hello.c": "#include <stdio.h>\nint main(void) { puts(VERSION); return 0; }\n",
    "demo-1.0/configure": "#!/bin/sh\necho configured\n",
}
BUILD = """#!/bin/sh -e
test "$PWD" = "$SRCDIR"
./configure >/etc/side-effect
cc -DVERSION=\\"$VERSION\\" -g -o "$BUILDDIR/hello" hello.c
install -D "$BUILDDIR/hello" "$DESTDIR$TARGET/bin/hello"
"""


def with_source(bench: Any) -> None:
    archive(bench.folder / "demo.tar.gz", dict(PROJECT))
    blob = bench.blob(bench.folder / "demo.tar.gz")
    bench.urls = (Url("demo", "https://example.org/demo.tar.gz", blob.sha256, blob.size),)
    bench.lock = Lock("bench", "", urls={"demo": blob})


SOURCE = {"Source": "url:demo", "BuildScripts": ["build"], "Environment": {"VERSION": "1.0"}, "Target": "/opt/demo"}


def test_a_source_stage_keeps_what_is_installed_and_nothing_else(new_bench: Callable[[str], Any]) -> None:
    digests = set()
    for name in ("one", "two-with-another-path"):
        bench = new_bench(name)
        with_source(bench)
        put(bench.folder / "build", BUILD, 0o755)
        built = bench.build(("source", SOURCE))
        digests.add(built[0].layer.digest)
        assert bench.run(built, "/opt/demo/bin/hello") == "1.0\n"
        assert bench.run(built, "sh", "-c", "ls /etc/side-effect 2>&1 || true; ls /opt").splitlines()[1:] == ["demo"]
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("true", "the scripts installed nothing below /opt/demo"),
        ('mkdir -p "$DESTDIR/etc"', "the scripts installed /etc, outside of Target /opt/demo"),
        ("python3 -c 'import socket; socket.create_connection((\"deb.debian.org\", 80))'", "stages have no network"),
        ("echo oh no; exit 1", "oh no"),
    ],
)
def test_a_source_stage_that_does_not_install_fails(bench: Any, script: str, message: str) -> None:
    with_source(bench)
    put(bench.folder / "build", f"#!/bin/sh\n{script}\n", 0o755)
    with pytest.raises(BuilderError) as failure:
        bench.build(("source", SOURCE))
    assert message in str(failure.value)


def test_a_source_stage_without_scripts_is_refused_before_anything_runs(bench: Any) -> None:
    with_source(bench)
    with pytest.raises(UsageError, match="stage source-0: has no BuildScripts"):
        bench.build(("source", {**SOURCE, "BuildScripts": []}))
