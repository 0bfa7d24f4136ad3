"""containers.toml: what it means, and the one error that each mistake gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.deploy.containers import Loaded, load
from builder.deploy.model import Container, Folder, Network
from builder.errors import UsageError


def loaded(folder: Path, text: str) -> Loaded:
    (folder / "containers.toml").write_text(text, encoding="utf-8")
    return load(folder / "containers.toml")


def error(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        loaded(folder, text)
    return str(caught.value).removeprefix(f"{folder}/")


def test_a_container_with_every_key(tmp_path: Path) -> None:
    made = loaded(
        tmp_path,
        """
        [[Container]]
        Ctid = 921
        Name = "fp8.lab"
        Template = 920
        Profile = "fp8"
        Bridge = "vmbr0.10"
        Ip = "192.0.2.21/24"
        Gateway = "192.0.2.1"
        Mac = "02:00:00:00:09:2a"
        Vlan = 10
        Mtu = 1400
        Firewall = true
        Nameservers = ["192.0.2.1", "2001:db8::1"]
        SearchDomain = "lab.example"
        MemoryMiB = 8192
        SwapMiB = 512
        Cores = 6
        Storage = "local-zfs"
        RootGiB = 48
        Gpus = [0, 1]
        Models = ["/srv/models:/models", "/srv/more:/more"]
        OnBoot = true
        Order = 3
        Delay = 30
        Tags = ["llm"]
        Raw = ["lxc.prlimit.memlock: unlimited"]
        Unprivileged = false
        Nesting = false
        """,
    )
    network = Network(
        bridge="vmbr0.10",
        ip="192.0.2.21/24",
        gateway="192.0.2.1",
        mac="02:00:00:00:09:2A",
        vlan=10,
        mtu=1400,
        firewall=True,
        nameservers=("192.0.2.1", "2001:db8::1"),
        searchdomain="lab.example",
    )
    assert made.containers == {
        921: Container(
            921,
            "fp8.lab",
            920,
            "fp8",
            network,
            memory_mib=8192,
            swap_mib=512,
            cores=6,
            storage="local-zfs",
            root_gib=48,
            gpus=(0, 1),
            models=(Folder("/srv/models", "/models"), Folder("/srv/more", "/more")),
            unprivileged=False,
            nesting=False,
            onboot=True,
            order=3,
            delay=30,
            tags=("llm",),
            raw=("lxc.prlimit.memlock: unlimited",),
        )
    }


def test_a_container_that_says_nothing_has_the_defaults(tmp_path: Path) -> None:
    made = loaded(tmp_path, '[[Container]]\nCtid = 921\nName = "a"\n')
    assert made.containers[921] == Container(921, "a")
    assert made.containers[921].gpus is None, "as many as the profile wants"


def test_no_cards_is_not_the_same_as_any_cards(tmp_path: Path) -> None:
    assert loaded(tmp_path, '[[Container]]\nCtid = 921\nName = "a"\nGpus = []\n').containers[921].gpus == ()


def test_defaults_hold_for_who_does_not_say_otherwise(tmp_path: Path) -> None:
    made = loaded(
        tmp_path,
        """
        TemplateIds = ["920", "923-925", "924"]
        SpareIds = ["930-931"]
        [Defaults]
        Template = 920
        Gateway = "192.0.2.1"
        Cores = 8
        [[Container]]
        Ctid = 920
        Name = "template"
        [[Container]]
        Ctid = 921
        Name = "a"
        Ip = "192.0.2.21/24"
        Cores = 2
        """,
    )
    template, server = made.containers[920], made.containers[921]
    assert (template.template, template.cores, template.network.gateway) == (None, 8, None)
    assert (server.template, server.cores, server.network.gateway) == (920, 2, "192.0.2.1")
    assert (made.template_ids, made.spare_ids, made.templates) == ((920, 923, 924, 925), (930, 931), (920,))


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("Memory = 1", 'unknown key "Memory" in [[Container]] 921; did you mean "MemoryMiB"?'),
        (
            "TemplateIds = []",
            'unknown key "TemplateIds" in [[Container]] 921; it belongs in the lines before the first',
        ),
        ('MemoryMiB = "1"', 'MemoryMiB in [[Container]] 921 must be int, not "1"'),
        ("MemoryMiB = 8", "must be at least 16, not 8"),
        ('Ip = "192.0.2.21"', 'Ip in [[Container]] 921 must be "dhcp", "manual" or an IPv4 address with its prefix'),
        ('Ip = "192.0.2.300/24"', "must be"),
        ('Ip = "192.0.2.0/24"', "within 192.0.2.0/24, which is neither its first nor its last"),
        ('Ip = "192.0.2.255/24"', "neither its first nor its last"),
        ('Ip = "239.0.0.1/24"', "an address that a machine can have"),
        ('Ip = "127.0.0.1/8"', "an address that a machine can have"),
        ('Gateway = "192.0.2.1"', "Gateway is 192.0.2.1, and Ip is dhcp"),
        ('Ip = "192.0.2.21/24"\nGateway = "192.0.3.1"', "Gateway 192.0.3.1 is not in the network of Ip, 192.0.2.0/24"),
        ('Ip = "192.0.2.21/24"\nGateway = "192.0.2.21"', "Gateway and Ip are both 192.0.2.21"),
        ('Mac = "01:00:00:00:00:01"', "a first octet that is odd means many"),
        ('Mac = "00:00:00:00:00:00"', "must not be all zeros"),
        ('Mac = "02-00-00-00-00-01"', "must be a MAC address"),
        ("Vlan = 4095", "must be from 1 to 4094, not 4095"),
        ("Mtu = 63", "must be from 64 to 65535, not 63"),
        ('Nameservers = ["ns.example"]', "'ns.example' is no IP address"),
        ('SearchDomain = "a_b"', "must be a host name"),
        ("Gpus = 0", "must be list of int, not 0; put it in brackets"),
        ("Gpus = [0, 0]", "a card stands there twice"),
        ("Gpus = [-1]", "a card's number is from 0 to 255"),
        ('Models = ["/srv/models"]', 'is not "/FOLDER/OF/HOST:/FOLDER/IN/CONTAINER"'),
        ('Models = ["/srv/../etc:/models"]', 'without ".."'),
        ('Models = ["srv:/models"]', "is not"),
        ('Models = ["/srv/a b:/models"]', "blanks"),
        ('Models = ["/a:/models", "/b:/models"]', "two folders have one place in the container"),
        ('Tags = ["LLM"]', "'LLM' is no tag"),
        ('Tags = ["builder-x"]', "tags that begin with builder are the builder's own"),
        ('Raw = ["lxc.apparmor.profile=unconfined"]', 'is not "lxc.KEY: VALUE"'),
        ('Raw = ["memory: 1"]', 'is not "lxc.KEY: VALUE"'),
        ('Raw = ["""lxc.a: b\nmemory: 1"""]', 'is not "lxc.KEY: VALUE"'),
        ('Storage = "-"', "must be the name of one of the host's storages"),
        ('Profile = "../x"', "must be lower-case letters"),
        ("Template = 921", "[[Container]] 921 is a clone of itself in the end"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path: Path, line: str, wrong: str) -> None:
    text = error(tmp_path, f'[[Container]]\nCtid = 921\nName = "a"\n{line}\n')
    where, _, what = text.partition(": ")
    assert where in ("containers.toml:4", "containers.toml:5")
    assert wrong in what
    assert "\n" not in text


@pytest.mark.parametrize("name", ["a_b", "-a", "a-", "a..b", "", "a" * 64, "ä"])
def test_a_name_is_a_host_name(tmp_path: Path, name: str) -> None:
    assert "must be a host name" in error(tmp_path, f'[[Container]]\nCtid = 921\nName = "{name}"\n')


@pytest.mark.parametrize("ctid", [99, 1_000_000_000, 0, -1])
def test_an_id_is_one_that_proxmox_knows(tmp_path: Path, ctid: int) -> None:
    assert "must be from 100 to 999999999" in error(tmp_path, f'[[Container]]\nCtid = {ctid}\nName = "a"\n')


@pytest.mark.parametrize(
    ("first", "second", "wrong"),
    [
        ('Ctid = 921\nName = "a"', 'Ctid = 921\nName = "b"', "Ctid 921 of [[Container]] 921 is also that of"),
        ('Ctid = 921\nName = "a"', 'Ctid = 922\nName = "A"', "Name A of [[Container]] 922 is also that of"),
        (
            'Ctid = 921\nName = "a"\nIp = "192.0.2.1/24"',
            'Ctid = 922\nName = "b"\nIp = "192.0.2.1/25"',
            "Ip 192.0.2.1/25 of [[Container]] 922 is also that of [[Container]] 921, line 4",
        ),
        (
            'Ctid = 921\nName = "a"\nMac = "02:00:00:00:00:0a"',
            'Ctid = 922\nName = "b"\nMac = "02:00:00:00:00:0A"',
            "Mac 02:00:00:00:00:0A of [[Container]] 922 is also that of [[Container]] 921, line 4",
        ),
    ],
)
def test_no_two_containers_share_what_is_one_ones(tmp_path: Path, first: str, second: str, wrong: str) -> None:
    assert wrong in error(tmp_path, f"[[Container]]\n{first}\n[[Container]]\n{second}\n")


def test_two_with_dhcp_are_two(tmp_path: Path) -> None:
    made = loaded(tmp_path, '[[Container]]\nCtid = 921\nName = "a"\n[[Container]]\nCtid = 922\nName = "b"\n')
    assert list(made.containers) == [921, 922]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Foo = 1", 'containers.toml:1: unknown key "Foo" in the file'),
        ("MemoryMiB = 1", 'unknown key "MemoryMiB" in the file; it belongs in [[Container]]'),
        ("Container = 1", "containers.toml:1: Container must be a list of tables; write [[Container]]"),
        ("[Container]", "Container must be a list of tables"),
        ("Defaults = 1", "Defaults must be a table; write [Defaults]"),
        ('[Defaults]\nMac = "02:00:00:00:00:01"', 'unknown key "Mac" in [Defaults]; it belongs in [[Container]]'),
        ("[[Container]]\nCtid = 921", "[[Container]] 921 has no Name"),
        ('[[Container]]\nName = "a"', "[[Container]] a has no Ctid"),
        ('TemplateIds = ["9-10"]', "neither an id from 100 on nor a range"),
        ('TemplateIds = ["930-920"]', "neither an id from 100 on nor a range"),
        ('TemplateIds = ["100-999999"]', "at most 1000 ids"),
        (
            'TemplateIds = ["920"]\nSpareIds = ["920"]',
            "containers.toml:2: SpareIds has 920, which is one of TemplateIds",
        ),
        ('SpareIds = ["921"]\n[[Container]]\nCtid = 921\nName = "a"', "SpareIds has 921, which is the Ctid of a"),
        (
            'TemplateIds = ["921"]\n[[Container]]\nCtid = 921\nName = "a"\nProfile = "fp8"',
            "TemplateIds has 921, which is the Ctid of a container that is no template",
        ),
        ("a = ", "containers.toml:1: is not TOML"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(tmp_path: Path, text: str, wrong: str) -> None:
    assert wrong in error(tmp_path, text)


def test_a_gateway_of_the_defaults_that_does_not_fit_is_told_at_the_container(tmp_path: Path) -> None:
    text = '[Defaults]\nGateway = "192.0.2.1"\n[[Container]]\nCtid = 921\nName = "a"\nIp = "192.0.3.2/24"\n'
    assert error(tmp_path, text).startswith("containers.toml:6: Gateway 192.0.2.1 is not in the network of Ip")


def test_clones_in_a_circle_are_refused(tmp_path: Path) -> None:
    text = (
        '[[Container]]\nCtid = 921\nName = "a"\nTemplate = 922\n[[Container]]\nCtid = 922\nName = "b"\nTemplate = 921'
    )
    assert "[[Container]] 921 is a clone of itself in the end" in error(tmp_path, text)


def test_the_file_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None) == Loaded()
    (tmp_path / "phoenix_lxc_configs.json").write_text('{"lxc_configs": {}}')
    assert load(None).source == Path("phoenix_lxc_configs.json")
    (tmp_path / "containers.toml").write_text("")
    assert load(None).source == Path("containers.toml")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "containers.toml")
