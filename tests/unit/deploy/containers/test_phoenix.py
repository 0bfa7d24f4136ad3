"""phoenix_lxc_configs.json: every generation is read as it is, and what is wrong with it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from builder.deploy.containers import Loaded, load
from builder.deploy.containers.convert import convert
from builder.deploy.containers.entry import LEFT, USED
from builder.deploy.containers.model import model_of
from builder.deploy.model import Container, Folder, Network
from builder.errors import BuilderError, UsageError

Read = Callable[..., Loaded]


def texts(loaded: Loaded, ctid: int | None, *severities: str) -> list[str]:
    return [found.text for found in loaded.of(ctid, *severities)]


def test_the_first_generation_has_its_network_and_features_as_text(
    read: Read, generations: dict[str, dict[str, Any]]
) -> None:
    loaded = read({"701": generations["701"]})
    assert loaded.containers == {
        701: Container(
            701,
            "first",
            network=Network(
                ip="192.0.2.71/24", gateway="192.0.2.1", mac="02:00:00:00:07:01", nameservers=("192.0.2.53",)
            ),
            memory_mib=8192,
            cores=4,
            storage="pool-a",
            root_gib=40,
            gpus=(0, 1),
        )
    }
    assert texts(loaded, 701) == [
        'not used: pct_options "keyctl=1", template',
        "not said, so taken: unprivileged true",
    ]


def test_the_second_generation(one: Read) -> None:
    loaded = one()
    assert loaded.containers[702] == Container(
        702,
        "flat",
        template=720,
        network=Network(
            bridge="vmbr9", ip="192.0.2.72/24", gateway="192.0.2.1", mac="02:00:00:00:07:02", firewall=True
        ),
        memory_mib=8192,
        swap_mib=512,
        cores=4,
        storage="pool-a",
        root_gib=40,
        gpus=(0, 1),
        onboot=True,
        order=3,
        delay=5,
        raw=("lxc.apparmor.profile: unconfined", "lxc.mount.auto: sys:rw"),
    )
    assert texts(loaded, 702, "contradiction", "refused") == []
    volume, unused = texts(loaded, 702)
    assert 'zfs_volumes "models" is a volume of its own on storage "pool-b"' in volume
    assert 'write Models = ["/FOLDER/OF/HOST:/vllm_models"]' in volume
    assert unused == (
        'not used: dependencies, features, firewall.rules, health_check, pct_options "keyctl=1", portainer_role, ports'
    )


def test_the_third_generation_with_a_folder_of_models(read: Read, generations: dict[str, dict[str, Any]]) -> None:
    loaded = read({"703": generations["703"]})
    made = loaded.containers[703]
    assert made.gpus == ()
    assert made.models == (Folder("/srv/models", "/models"),)
    assert made.network.nameservers == ("192.0.2.53", "192.0.2.54")
    assert texts(loaded, 703) == [
        'not used: mount_points "/etc/tls", traefik_service',
        "clone_from_ctid is 720, which has no entry here",
    ]


def test_entries_are_kept_whole_for_their_profiles(read: Read, generations: dict[str, dict[str, Any]]) -> None:
    loaded = read(generations)
    assert {str(ctid): entry for ctid, entry in loaded.entries.items()} == generations
    assert loaded.templates == (720,)
    assert all(made.profile is None for made in loaded.containers.values())


@pytest.mark.parametrize(
    ("value", "gpus"),
    [("0", (0,)), ("0,1", (0, 1)), ("0, 1", (0, 1)), ("0 1", (0, 1)), ("none", ()), ("", ()), (None, ()), (1, (1,))],
)
def test_cards_in_every_form(one: Read, value: Any, gpus: tuple[int, ...]) -> None:
    assert one(gpu_assignment=value).containers[702].gpus == gpus


@pytest.mark.parametrize("value", ["all", "0,0", "0;1", "-1", True, 0.5, {}, [[0]], "999"])
def test_cards_that_cannot_be_are_refused(one: Read, value: Any) -> None:
    loaded = one(gpu_assignment=value)
    assert 702 not in loaded.containers
    assert texts(loaded, 702, "refused")[0].startswith("gpu_assignment ")


@pytest.mark.parametrize(("value", "memory"), [("8192", 8192), (" 64 ", 64), (64.0, 64), (64, 64)])
def test_numbers_may_be_text(one: Read, value: Any, memory: int) -> None:
    assert one(memory_mb=value).containers[702].memory_mib == memory


@pytest.mark.parametrize("value", ["8G", 8.5, True, [], -1, 1e400, "٣٢٠"])
def test_numbers_that_are_none_are_refused(one: Read, value: Any) -> None:
    (text,) = texts(one(memory_mb=value), 702, "refused")
    assert text.startswith("memory_mb must be ")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"static_ip": "192.0.2.99/24"},
            'network_config.ip is "192.0.2.72/24" and static_ip is "192.0.2.99/24": network_config.ip decides',
        ),
        ({"swap": 1024}, "swap_mb is 512 and swap is 1024: swap_mb decides"),
        (
            {"clone_from_template_ctid": "721"},
            'clone_from_ctid is "720" and clone_from_template_ctid is "721": clone_from_ctid decides',
        ),
        (
            {"apparmor_profile": "custom"},
            'lxc.apparmor.profile in lxc_options is "unconfined" and apparmor_profile is "custom": '
            "lxc.apparmor.profile in lxc_options decides",
        ),
        (
            {"mac_address": None, "network_config": {"hwaddr": "02:00:00:00:07:20"}},
            "mac_address 02:00:00:00:07:20 is also that of 720: only one of them can run",
        ),
        ({"name": "Template"}, "name template is also that of 720: only one of them can run"),
    ],
)
def test_a_contradiction_shows_both_values_and_what_decides(one: Read, changes: dict[str, Any], text: str) -> None:
    loaded = one(**changes)
    assert text in texts(loaded, 702, "contradiction")
    assert 702 in loaded.containers


def test_the_same_said_twice_is_no_contradiction(one: Read) -> None:
    changes = {"static_ip": "192.0.2.72/24", "swap": "512", "clone_from_template_ctid": 720}
    assert texts(one(**changes), 702, "contradiction") == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": None}, "has no name"),
        ({"name": "a_b"}, "name must be a host name"),
        ({"mac_address": "01:23:45:67:89:A1"}, "mac_address must be the address of one card"),
        ({"network_config": "10.0.0.300/24"}, "network_config.ip must be"),
        ({"network_config": {"ip": "192.0.2.5/24", "gw": "192.0.3.1"}}, "network_config: Gateway 192.0.3.1 is not in"),
        ({"network_config": {"nameservers": "dns"}}, 'network_config.nameservers must be IP addresses, not "dns"'),
        ({"network_config": []}, "network_config must be an object"),
        ({"lxc_options": ["memory: 5"]}, "lxc_options must be lines"),
        ({"lxc_options": ["lxc.a=b\nmemory: 5"]}, "lxc_options must be lines"),
        ({"lxc_options": 5}, "lxc_options must be a list of texts"),
        ({"pct_options": ["nesting=maybe"]}, "pct_options nesting must be true or false"),
        ({"unprivileged": "perhaps"}, "unprivileged must be true or false"),
        ({"firewall": True}, "firewall must be an object"),
        ({"zfs_volumes": "x"}, "zfs_volumes must be a list of objects"),
        ({"clone_from_ctid": "702"}, "clone_from_ctid makes it a clone of itself in the end"),
    ],
)
def test_what_cannot_be_is_refused_and_the_others_are_read(one: Read, changes: dict[str, Any], text: str) -> None:
    loaded = one(**changes)
    assert list(loaded.containers) == [720]
    assert 702 in loaded.entries
    assert any(found.startswith(text) for found in texts(loaded, 702, "refused"))


def test_unknown_keys_are_told_in_one_line_with_the_nearest(one: Read) -> None:
    loaded = one(memory_gb=4, zzz=1, network_config={"vlan": 3}, firewall={"policy": "DROP"}, vllm_new=1)
    (text,) = [text for text in texts(loaded, 702) if "unknown" in text]
    assert text.endswith("; unknown: firewall.policy, memory_gb (memory_mb?), network_config.vlan, zzz")


def test_unknown_keys_at_the_top_are_told(read: Read) -> None:
    loaded = read({}, nvidia_driver_version="999.01", nvidia_repo_ulr="x")
    assert texts(loaded, None) == [
        "not used: $schema, nvidia_driver_version (the driver is the host's, the rest comes with the recipe)",
        'unknown: "nvidia_repo_ulr" (nvidia_repo_url?)',
    ]


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"lxc_configs": {"700": {"name": "a", "cores": 1, "cores": 2}, "701": {}, "701": {"name": "b"}}}')
    loaded = load(path)
    assert loaded.containers[700].cores == 2
    assert texts(loaded, 700, "contradiction") == ['"cores" stands there more than once: the last one decides']
    assert texts(loaded, None, "contradiction") == ['"701" stands there more than once: the last one decides']


def test_lines_for_the_cards_are_left_to_the_deploy(one: Read) -> None:
    lines = [
        "lxc.cgroup2.devices.allow: c 195:* rwm",
        "lxc.mount.entry=/dev/nvidia0 dev/nvidia0 none bind",
        "lxc.a = b",
    ]
    loaded = one(lxc_options=lines, apparmor_profile=None)
    assert loaded.containers[702].raw == ("lxc.a: b",)
    assert 'lxc_options "c 195:* rwm"' in texts(loaded, 702)[1]


def test_an_apparmor_profile_of_their_own_becomes_lines(one: Read) -> None:
    made = one(lxc_options=[], apparmor_profile="mine").containers[702]
    assert made.raw == ("lxc.apparmor.profile: mine", "lxc.apparmor.allow_nesting: 1")


def test_unconfined_as_the_profile_alone_changes_nothing(one: Read) -> None:
    assert one(lxc_options=[]).containers[702].raw == ()


def test_the_name_of_the_card_in_the_container_is_always_the_same(one: Read) -> None:
    loaded = one(network_config={"name": "lan"})
    assert loaded.containers[702].network.name == "eth0"
    assert 'network_config.name "lan" (it is eth0)' in texts(loaded, 702)[1]


def test_features_of_proxmox_are_taken_from_either_place(one: Read) -> None:
    assert one(pct_options=["nesting=0"]).containers[702].nesting is False
    assert one(pct_options=[], features="nesting=0,keyctl=1").containers[702].nesting is False
    assert one(pct_options=[]).containers[702].nesting is True


def test_a_volume_of_a_container_without_a_model_is_only_named(one: Read) -> None:
    gone = dict.fromkeys(("vllm_model", "vllm_args", "vllm_parameters", "vllm_quantization"))
    (text,) = texts(one(**gone), 702)
    assert 'zfs_volumes "models"' in text


@pytest.mark.parametrize("key", ["70", "0700", "abc", "1000000000", "700 "])
def test_a_key_that_is_no_id_is_refused(read: Read, key: str) -> None:
    loaded = read({key: {"name": "a"}})
    assert (loaded.containers, loaded.entries) == ({}, {})
    assert texts(loaded, None, "refused") == [f'lxc_configs has "{key}", which is no id from 100 on']


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b'{\n"lxc_configs": {\n', "p.json:3: is no JSON"),
        (b'{"a": "\xff"}', "p.json:1: is not UTF-8"),
        (b"", "p.json:1: is no JSON"),
        (b"[]", "p.json: has no object lxc_configs"),
        (b'{"lxc_configs": []}', "p.json: has no object lxc_configs"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 deep"),
        (b"[" * 100_000, "p.json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "p.json"),
    ],
)
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes, wrong: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hf_token": "letmein"},
        {"application_script": "run https://me:letmein@ca.example"},
        {"swap": "password=letmein"},
        {"gpu_assignment": "token: letmein"},
        {"static_ip": "hf_letmeinletmein"},
        {"vllm_args": ["--api-key", "letmein"]},
        {"vllm_args": ["--api-key=letmein"]},
        {"vllm_args": "--api-key=letmein"},
        {"vllm_parameters": {"env": {"HF_TOKEN": "letmein"}}},
        {"tests": [{"env": ["A=1", "HF_TOKEN=letmein"]}]},
    ],
)
def test_secrets_are_neither_told_nor_converted(one: Read, changes: dict[str, Any]) -> None:
    loaded = one(**changes)
    assert "letmein" not in "".join(found.text for found in loaded.findings)
    assert "letmein" not in convert(loaded)


def test_what_only_looks_like_a_secret_is_shown(one: Read) -> None:
    assert '"--max-num-batched-tokens", "8192"' in convert(one(vllm_args=["--max-num-batched-tokens", "8192"]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PLAUSIBLE = st.sampled_from(
    [
        "0, 1",
        "none",
        "920",
        "101",
        "10.0.0.5/24",
        "lxc.a=b",
        "nesting=1",
        "02:00:00:00:00:01",
        "name",
        8,
        0.5,
        True,
        [""],
    ]
)
NETWORK = st.dictionaries(
    st.sampled_from(["name", "bridge", "ip", "gw", "hwaddr", "nameservers", "nameserver", "x"]), PLAUSIBLE | JSON
)
ENTRY = st.dictionaries(
    st.sampled_from([*USED, *LEFT, "vllm_model", "vllm_args", "vllm_engine_config", "x"]) | st.text(),
    PLAUSIBLE | JSON | NETWORK | st.lists(st.dictionaries(st.text(), JSON, max_size=2), max_size=2),
)
NAMED = st.builds(lambda entry, name: {**entry, "name": name}, ENTRY, st.sampled_from(["a", "b", "c"]))
FILE = st.fixed_dictionaries(
    {"lxc_configs": st.dictionaries(st.sampled_from(["101", "920", "950", "x"]), NAMED | ENTRY | JSON) | JSON},
    optional={"nvidia_driver_version": JSON, "x": JSON},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@example({"lxc_configs": {"950": {"name": "a", "x\udc00": 1, "lxc_options": ["lxc.a=\ud800"], "ports": "\x7f\u2028"}}})
@given(FILE | JSON)
def test_any_json_is_read_or_is_one_error(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    try:
        loaded = load(path)
    except BuilderError:
        return
    told_and_converted(tmp_path, loaded)


CHANGES = st.dictionaries(st.sampled_from(USED), PLAUSIBLE | NETWORK | JSON, max_size=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["701", "702", "703", "720"]), CHANGES))
def test_entries_with_any_values_are_read(
    tmp_path: Path, read: Read, generations: dict[str, dict[str, Any]], changes: dict[str, dict[str, Any]]
) -> None:
    loaded = read({ctid: {**entry, **changes.get(ctid, {})} for ctid, entry in generations.items()})
    told_and_converted(tmp_path, loaded)
    for ctid, entry in generations.items():
        if loaded.entries[int(ctid)] == entry:
            others_fault = ["clone_from_ctid makes it a clone of itself in the end"]
            assert int(ctid) in loaded.containers or texts(loaded, int(ctid), "refused") == others_fault


def told_and_converted(folder: Path, loaded: Loaded) -> None:
    """Every entry became a container or was refused, and the converted file says the same."""
    assert all(found.text.isprintable() for found in loaded.findings)
    for ctid in loaded.entries:
        assert (ctid in loaded.containers) != bool(loaded.of(ctid, "refused"))
    (folder / "c.toml").write_text(convert(loaded), encoding="utf-8")
    again = load(folder / "c.toml")
    assert all(loaded.containers[ctid] == made for ctid, made in again.containers.items())
    assert bool(again.containers) == bool(loaded.containers)


@pytest.mark.parametrize(
    ("entry", "model"),
    [
        ({}, ""),
        ({"vllm_model": None}, ""),
        ({"vllm_model": "none"}, ""),
        ({"vllm_model": "org/a"}, "org/a"),
        ({"vllm_model": "org/a", "vllm_args": ["--model", "org/b"]}, "org/b"),
        ({"vllm_args": ["--model"]}, ""),
        ({"vllm_engine_config": {"ModelConfig": {"model": "org/c"}}}, "org/c"),
        ({"vllm_engine_config": []}, ""),
    ],
)
def test_the_model_that_an_entry_serves(entry: dict[str, Any], model: str) -> None:
    assert model_of(entry) == model
