"""One container out of a file: its entry or the template's, and what the command line says over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.deploy.containers import Loaded, load, select
from builder.deploy.model import Container, Folder, Network
from builder.errors import UsageError

FILE = """
[Defaults]
Template = 920
Gateway = "192.0.2.1"
Storage = "pool-a"
[[Container]]
Ctid = 920
Name = "template"
Cores = 8
Gpus = [0, 1]
Mac = "02:00:00:00:09:20"
[[Container]]
Ctid = 950
Name = "awq"
Profile = "awq"
Ip = "192.0.2.50/24"
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "containers.toml").write_text(FILE, encoding="utf-8")
    return load(tmp_path / "containers.toml")


def test_an_entry_is_taken_as_it_is(loaded: Loaded) -> None:
    assert select(loaded, 950) == loaded.containers[950]
    assert select(loaded, 950, ip=None, gpus=None) == loaded.containers[950]


def test_the_command_line_decides(loaded: Loaded) -> None:
    made = select(
        loaded,
        950,
        name="x",
        ip="192.0.2.60/24",
        mac="02:00:00:00:00:0a",
        gpus=(1,),
        models=("/a:/models",),
        memory_mib=1024,
        firewall=True,
    )
    assert (made.name, made.gpus, made.memory_mib, made.profile) == ("x", (1,), 1024, "awq")
    assert made.models == (Folder("/a", "/models"),)
    assert made.network == Network(ip="192.0.2.60/24", gateway="192.0.2.1", mac="02:00:00:00:00:0A", firewall=True)


def test_folders_may_be_given_as_such(loaded: Loaded) -> None:
    assert select(loaded, 950, models=(Folder("/a", "/models"),)).models == (Folder("/a", "/models"),)


def test_dhcp_on_the_command_line_needs_no_gateway(loaded: Loaded) -> None:
    assert select(loaded, 950, ip="dhcp").network.gateway is None


def test_a_container_without_an_entry_is_like_the_template_but_for_what_is_its_own(loaded: Loaded) -> None:
    made = select(loaded, 922)
    assert (made.ctid, made.name, made.template, made.cores, made.storage) == (922, "vllm-922", 920, 8, "pool-a")
    assert (made.gpus, made.network.mac, made.network.ip) == (None, None, "dhcp")


def test_without_a_file_there_are_the_defaults() -> None:
    assert select(Loaded(), 921) == Container(921, "vllm-921")


def test_without_a_template_s_entry_there_are_the_files_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[Defaults]\nTemplate = 920\nCores = 9\n")
    made = select(load(tmp_path / "c.toml"), 921)
    assert (made.cores, made.template) == (9, 920)


def test_the_address_of_a_template_is_not_taken_but_asked_for(
    read: Callable[..., Loaded], generations: dict[str, dict[str, Any]]
) -> None:
    loaded = read(generations)
    with pytest.raises(UsageError) as caught:
        select(loaded, 930)
    assert "container 930 in " in str(caught.value)
    assert "that of 720 is 192.0.2.220/24; give --ip ADDRESS/LENGTH or --ip dhcp" in str(caught.value)
    made = select(loaded, 930, ip="192.0.2.30/24")
    assert (made.network.bridge, made.network.gateway, made.storage) == ("vmbr9", "192.0.2.1", "pool-a")


def test_only_what_servers_are_clones_of_counts_as_the_template(
    read: Callable[..., Loaded], generations: dict[str, dict[str, Any]]
) -> None:
    generations["720"]["clone_from_ctid"] = "710"
    generations["710"] = {"name": "base", "cores": 1}
    assert select(read(generations), 930, ip="dhcp").cores == 2


def test_another_template_may_be_named(loaded: Loaded) -> None:
    assert select(loaded, 951, template=950, ip="dhcp").cores == loaded.containers[950].cores
    assert select(loaded, 951, template=999).template == 999


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"ip": "192.0.2.5"}, '--ip: must be "dhcp", "manual" or an IPv4 address with its prefix length'),
        ({"ip": "192.0.3.5/24"}, "Gateway 192.0.2.1 is not in the network of Ip, 192.0.3.0/24; give --gateway"),
        ({"name": "a b"}, "--name: must be a host name"),
        ({"memory_mib": 1}, "--memory: must be at least 16, not 1"),
        ({"models": ("/a",)}, "--models: '/a' is not"),
        ({"gpus": (0, 0)}, "--gpus: a card stands there twice"),
        ({"mac": "01:00:00:00:00:00"}, "--mac: must be the address of one card"),
        ({"onboot": 1, "cores": 0}, "--cores: must be from 1 to 8192, not 0"),
    ],
)
def test_a_wrong_option_is_named(loaded: Loaded, given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(loaded, 950, **given)
    assert wrong in str(caught.value)


def test_a_refused_entry_is_not_passed_over(one: Callable[..., Loaded]) -> None:
    with pytest.raises(UsageError, match=r'container 702 in .*: memory_mb must be a whole number, not "8G"'):
        select(one(memory_mb="8G"), 702)


def test_an_id_that_proxmox_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="container 99: ids of containers begin with 100"):
        select(Loaded(), 99)


def test_a_field_that_there_is_not_is_a_mistake_of_the_caller(loaded: Loaded) -> None:
    with pytest.raises(TypeError, match="no field 'cpus'"):
        select(loaded, 950, cpus=1)
