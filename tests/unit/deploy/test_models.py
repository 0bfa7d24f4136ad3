"""Models fetched from a simulated hub: pinned, resumed, refused when damaged, and looked at again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from builder.deploy import hub as hub_module
from builder.deploy.channel import Local
from builder.deploy.hub import Access
from builder.deploy.models import Fault, Pinned, Place, fetch, notes, read_lock, verify, write_lock
from builder.deploy.profile import Model, Profile
from builder.deploy.shell import Shell
from builder.errors import BuilderError, UsageError
from builder.progress import Silent

from .simulated_hub import COMMIT, TOKEN, SimulatedHub, serving

REPOSITORY = "lab/Tiny-Llama"
WEIGHTS = bytes(range(256)) * 4096
PIECE = 10 << 20  # huggingface_hub writes so much at a time
LONG = WEIGHTS * 12
FILES = {
    "config.json": b'{"model_type": "llama", "hidden_size": 64, "rope_scaling": {"factor": 8.0, "rope_type": "x"}}',
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "LICENSE.txt": b"as you like",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "modeling_tiny.py": b"import os",
    "pytorch_model.bin": b"a pickle",
    "original/consolidated.00.pth": b"a pickle",
    "README.md": b"# Tiny",
    ".gitattributes": b"",
}
KEPT = sorted(name for name in FILES if name.endswith((".json", ".safetensors", ".txt")))


@pytest.fixture
def hub() -> Iterator[SimulatedHub]:
    with serving(SimulatedHub(REPOSITORY, dict(FILES))) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Shell(Local()), str(tmp_path / "models" / "Tiny-Llama"))


def profile(revision: str | None = None, **shape: object) -> Profile:
    model = Model(REPOSITORY, revision, "/models/Tiny-Llama", shape)
    return Profile("tiny", "tiny", model, "tiny", "completion", 1, 0.5, {}, {}, source="tiny.toml")


def fetched(hub: SimulatedHub, place: Place, known: Pinned | None = None, revision: str | None = None) -> Pinned:
    access = Access(hub.endpoint, TOKEN)
    return fetch(profile(revision), place, known, access, lambda pinned: None, Silent())


def contents(place: Place) -> dict[str, bytes]:
    root = Path(place.folder)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_weights_and_settings_are_fetched_but_no_pickles_and_no_code(hub: SimulatedHub, place: Place) -> None:
    pinned = fetched(hub, place)
    assert pinned.revision == COMMIT
    assert contents(place) == {name: FILES[name] for name in KEPT}
    assert pinned.files == {name: (len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest()) for name in KEPT}
    assert verify(place, pinned) == ()


def test_files_are_readable_by_all_whatever_the_umask(hub: SimulatedHub, place: Place) -> None:
    fetched(hub, place)
    assert {os.stat(f"{place.folder}/{name}").st_mode & 0o777 for name in KEPT} == {0o644}


def test_the_sums_beside_the_folder_are_read_by_sha256sum(hub: SimulatedHub, place: Place) -> None:
    fetched(hub, place)
    folder = Path(place.folder).parent
    argv = ["sha256sum", "--check", "--strict", "--quiet", "Tiny-Llama.sha256"]
    assert subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True).stdout == ""


def test_what_is_there_is_not_fetched_again(hub: SimulatedHub, place: Place) -> None:
    pinned = fetched(hub, place)
    hub.requests.clear()
    assert fetched(hub, place, pinned) == pinned
    assert [path for path, _, _ in hub.requests] == [f"/api/models/{REPOSITORY}/revision/{COMMIT}"]


def test_a_damaged_file_is_fetched_again(hub: SimulatedHub, place: Place) -> None:
    pinned = fetched(hub, place)
    Path(place.folder, "tokenizer.json").write_bytes(b"[]")
    Path(place.folder, "model-00001-of-00002.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    fetched(hub, place, pinned)
    assert verify(place, pinned) == ()


def test_a_line_that_drops_within_a_file_goes_on_where_it_stopped(
    hub: SimulatedHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    name = "model-00001-of-00002.safetensors"
    hub.files[name] = LONG
    hub.cuts[name] = [PIECE + 100_000]
    pinned = fetched(hub, place)
    assert hub.ranges(name)[-1] == f"bytes={PIECE}-"
    assert verify(place, pinned) == ()


def test_a_fetch_that_was_cut_short_goes_on_where_it_stopped(
    hub: SimulatedHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    name = "model-00001-of-00002.safetensors"
    hub.files[name] = LONG
    hub.cuts[name] = [PIECE + 300_000, *[0] * 10]
    pins: list[Pinned] = []
    with pytest.raises(BuilderError, match="try again: it goes on where it stopped"):
        fetch(profile(), place, None, Access(hub.endpoint), pins.append, Silent())
    assert os.path.getsize(f"{place.folder}/{name}.part") == PIECE
    assert len(pins) == 1  # everything is pinned before the first weights
    hub.cuts.clear()
    hub.requests.clear()
    hub.commit = "5" * 40  # the repository has moved on, and what was pinned would be asked for all the same
    with pytest.raises(BuilderError, match="no such revision"):
        fetched(hub, place, pins[0])
    hub.commit = COMMIT
    assert fetched(hub, place, pins[0]) == pins[0]
    assert hub.ranges(name) == [f"bytes={PIECE}-"] * 2  # the hub's redirect, then the storage
    assert verify(place, pins[0]) == ()


def test_a_content_that_the_hub_did_not_list_is_refused_and_removed(hub: SimulatedHub, place: Place) -> None:
    name = "model-00002-of-00002.safetensors"
    hub.swapped[name] = WEIGHTS
    with pytest.raises(BuilderError, match=f"{name} arrived with sha256 .* and the hub lists sha256 .*: removed"):
        fetched(hub, place)
    assert not list(Path(place.folder).glob(f"{name}*"))


def test_a_small_file_is_held_to_git_s_own_hash(hub: SimulatedHub, place: Place) -> None:
    hub.swapped["config.json"] = FILES["config.json"].replace(b"64", b"65")
    with pytest.raises(BuilderError, match=r"config\.json arrived with sha256 .* and the hub lists git blob"):
        fetched(hub, place)


def test_a_hub_whose_listing_fits_another_content_is_caught_by_the_pin(hub: SimulatedHub, place: Place) -> None:
    pinned = fetched(hub, place)
    hub.files["config.json"] = FILES["config.json"].replace(b"64", b"65")
    Path(place.folder, "config.json").unlink()
    with pytest.raises(BuilderError, match=r"config\.json arrived with sha256 .* is pinned: removed"):
        fetched(hub, place, pinned)
    assert not Path(place.folder, "config.json").exists()


def test_the_profile_s_own_revision_comes_before_what_is_pinned(hub: SimulatedHub, place: Place) -> None:
    old = Pinned(REPOSITORY, "3" * 40, {"config.json": (1, "0" * 64)})
    assert fetched(hub, place, old, revision=COMMIT).revision == COMMIT


def test_the_token_goes_to_the_hub_and_not_to_the_storage(hub: SimulatedHub, place: Place) -> None:
    hub.gated = True
    fetched(hub, place)
    assert set(hub.sent_to_storage()) == {None}
    assert {token for path, _, token in hub.requests if path.startswith("/api")} == {f"Bearer {TOKEN}"}


def test_a_gated_model_says_what_to_do(hub: SimulatedHub, place: Place) -> None:
    hub.gated = True
    with pytest.raises(BuilderError, match=r"is gated.*accept its terms on the hub, then give --token-file") as caught:
        fetch(
            profile(), place, None, Access(hub.endpoint, "hf_otherTokenThatNobodySees"), lambda pinned: None, Silent()
        )
    assert "hf_other" not in str(caught.value)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "evil\n.json", "[/evil].json"])
def test_a_name_that_leads_elsewhere_is_refused(hub: SimulatedHub, place: Place, name: str) -> None:
    hub.files[name] = b"{}"
    with pytest.raises(BuilderError, match="no such name is written"):
        fetched(hub, place)
    assert not Path(place.folder).exists()


def test_a_model_without_safetensors_is_refused(hub: SimulatedHub, place: Place) -> None:
    for name in [name for name in hub.files if name.endswith(".safetensors")]:
        del hub.files[name]
    with pytest.raises(BuilderError, match="pickled ones are not fetched"):
        fetched(hub, place)


def test_two_downloads_of_one_file_do_not_mix(hub: SimulatedHub, place: Place) -> None:
    import fcntl

    part = Path(place.folder, "1_Pooling", "config.json.part")
    part.parent.mkdir(parents=True)
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BuilderError, match="another download writes it"):
            fetched(hub, place)


def test_verify_names_each_file_that_is_not_as_it_was(hub: SimulatedHub, place: Place) -> None:
    pinned = fetched(hub, place)
    Path(place.folder, "tokenizer.json").write_bytes(b"{ }")
    Path(place.folder, "LICENSE.txt").unlink()
    Path(place.folder, "new\nline").write_bytes(b"")
    Path(place.folder, "model-00001-of-00002.safetensors.part").write_bytes(b"")
    assert verify(place, pinned) == (
        Fault("LICENSE.txt", "missing"),
        Fault("model-00001-of-00002.safetensors.part", "extra"),
        Fault("new\nline", "extra"),
        Fault("tokenizer.json", "damaged"),
    )


def test_without_the_folder_every_file_is_missing(place: Place) -> None:
    assert verify(place, Pinned(REPOSITORY, COMMIT, {"config.json": (1, "0" * 64)})) == (
        Fault("config.json", "missing"),
    )


def test_a_shape_that_the_real_config_does_not_have_is_told(hub: SimulatedHub, place: Place) -> None:
    fetched(hub, place)
    same = profile(model_type="llama", rope_scaling={"factor": 8.0})
    assert notes(same, place) == ()
    assert notes(profile(hidden_size=128, head_dim=16), place) == (
        "hidden_size is 64 in config.json, and 128 in tiny.toml",
        "config.json has no head_dim, and tiny.toml says 16",
    )


def test_a_model_with_code_of_its_own_is_told(hub: SimulatedHub, place: Place) -> None:
    hub.files["config.json"] = b'{"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}'
    fetched(hub, place)
    assert "Python code of its own (auto_map)" in notes(profile(), place)[0]


def test_files_for_another_machine_wait_in_one_place_and_are_sent(hub: SimulatedHub, tmp_path: Path) -> None:
    there = Place(Shell(Local()), str(tmp_path / "there" / "Tiny-Llama"), tmp_path / "staging")
    pinned = fetched(hub, there)
    assert contents(there) == {name: FILES[name] for name in KEPT}
    assert verify(there, pinned) == ()
    assert [file for file in (tmp_path / "staging").rglob("*") if file.is_file()] == []
    assert f"{os.stat(f'{there.folder}/config.json').st_mode & 0o7777:04o}" == "0644"


def test_a_model_of_the_template_is_not_fetched(place: Place) -> None:
    own = Profile(
        "cpu", "", Model("", None, "/opt/models/tiny"), "tiny", "completion", 0, 0.0, {}, {}, source="cpu.toml"
    )
    with pytest.raises(UsageError, match="lies in the template"):
        fetch(own, place, None, Access(), lambda pinned: None, Silent())


def test_the_lock_is_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "models.toml"
    one = Pinned("lab/One", "1" * 40, {'a "b" é.json': (1, "a" * 64), "b.safetensors": (2, "b" * 64)})
    two = Pinned("lab/Two", "2" * 40, {"c.json": (3, "c" * 64)})
    newer = Pinned("lab/One", "3" * 40, {"d.json": (4, "d" * 64)})
    for pinned in (two, one):
        write_lock(path, pinned)
    assert read_lock(path) == {"lab/One": one, "lab/Two": two}
    before = path.read_bytes()
    write_lock(path, two)
    assert path.read_bytes() == before
    write_lock(path, newer)
    assert read_lock(path) == {"lab/One": newer, "lab/Two": two}


def test_a_lock_that_was_damaged_by_hand_says_where(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    write_lock(path, Pinned("lab/One", "1" * 40, {"a.json": (1, "a" * 64)}))
    path.write_text(path.read_text().replace("a" * 64, "short"))
    with pytest.raises(UsageError, match=r"models\.toml:\d+: Sha256 .* must be a sha256"):
        read_lock(path)


def test_huggingface_hub_is_imported_only_when_something_is_asked() -> None:
    program = "import sys; import builder.commands.models; print('huggingface_hub' in sys.modules)"
    argv = [sys.executable, "-c", program]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "False\n"


def command(tmp_path: Path, hub: SimulatedHub) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`builder` in a project with one profile, against the simulated hub."""
    recipe = tmp_path / "recipes" / "lab"
    (recipe / "profiles").mkdir(parents=True)
    (recipe / "recipe.toml").write_text(
        '[Recipe]\nDescription = "lab"\n[Distribution]\nDistribution = "debian"\nRelease = "trixie"\n'
        'Architecture = "x86-64"\n[Output]\nImageId = "lab"\nImageVersion = "1"\n'
        '[Content]\nSourceDateEpoch = 1766188800\n[[Stage]]\nName = "base"\nKind = "debian"\nPackages = ["systemd"]\n'
    )
    (recipe / "profiles" / "tiny.toml").write_text(
        f'[Profile]\nDescription = "tiny"\n[Model]\nRepository = "{REPOSITORY}"\nPath = "/models/Tiny-Llama"\n'
        "[Model.Shape]\nhidden_size = 128\n"
        '[Options]\nserved-model-name = "tiny"\ngpu-memory-utilization = 0.5\n'
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        argv = [str(Path(sys.executable).with_name("builder")), "models", *words, "--to", "models"]
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def test_the_command_fetches_pins_and_verifies(tmp_path: Path, hub: SimulatedHub) -> None:
    builder = command(tmp_path, hub)
    hub.gated = True
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o644)
    refused = builder("fetch", "tiny", "--token-file", str(token))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "others may read it (mode 0644); chmod 600" in refused.stderr
    token.chmod(0o600)
    done = builder("fetch", "tiny", "--token-file", str(token))
    assert done.returncode == 0, done.stderr
    source = tmp_path / "recipes/lab/profiles/tiny.toml"
    assert done.stderr == f"{REPOSITORY}: hidden_size is 64 in config.json, and 128 in {source}\n"
    assert done.stdout == f"{tmp_path}/models/Tiny-Llama: 6 files, 2.0 MiB, commit {COMMIT[:12]}\n"
    assert TOKEN not in (tmp_path / "locks/lab/models.toml").read_text()
    fine = builder("verify", "tiny")
    assert (fine.returncode, fine.stdout) == (0, f"{tmp_path}/models/Tiny-Llama: 6 files, 0 faults\n")
    (tmp_path / "models/Tiny-Llama/tokenizer.json").unlink()
    bad = builder("verify", "tiny", "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["faults"] == [{"path": "tokenizer.json", "what": "missing"}]


def test_a_fetch_that_was_killed_goes_on(tmp_path: Path, hub: SimulatedHub) -> None:
    builder = command(tmp_path, hub)
    name = "model-00001-of-00002.safetensors"
    hub.files[name] = LONG
    hub.cuts[name] = [PIECE + 500_000, *[0] * 10]
    killed = subprocess.Popen(
        [str(Path(sys.executable).with_name("builder")), "models", "fetch", "tiny", "--to", "models"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    part = tmp_path / "models/Tiny-Llama" / f"{name}.part"
    for _ in range(600):
        with suppress(FileNotFoundError):
            if part.stat().st_size == PIECE:
                break
        with suppress(subprocess.TimeoutExpired):
            killed.wait(0.05)
    killed.kill()
    killed.wait()
    assert part.stat().st_size == PIECE
    hub.cuts.clear()
    hub.requests.clear()
    done = builder("fetch", "tiny")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(name)[-1] == f"bytes={PIECE}-"
    assert builder("verify", "tiny").returncode == 0


def test_nothing_answers_and_the_command_says_so_in_one_line(tmp_path: Path, hub: SimulatedHub) -> None:
    builder = command(tmp_path, hub)
    hub.port = 1
    done = builder("fetch", "tiny")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{REPOSITORY} on the model hub: the download failed" in done.stderr


def test_what_is_fetched_is_a_matter_of_names() -> None:
    wanted = ["model.safetensors", "config.json", "1_Pooling/config.json", "vocab.txt", "tokenizer.model", "LICENSE"]
    unwanted = ["model.bin", "original/params.json", "onnx/config.json", "modeling.py", "model.gguf", "x.pth"]
    assert [name for name in wanted + unwanted if hub_module._is_wanted(name)] == wanted


def test_a_full_disk_is_said(hub: SimulatedHub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(BuilderError, match=r"the download failed \(No space left on device\)"):
        fetched(hub, place)
