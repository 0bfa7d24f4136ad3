"""Commands against the schemas of Proxmox VE 8 and 9."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.host import config
from builder.deploy.host.schema import checker
from builder.deploy.model import Container, Device, Network, Settings
from builder.errors import UsageError

from .simulated import Recorded, recorded

Check = Callable[[Sequence[str]], None]
FORMAT_ERRORS = ("400 Parameter verification failed", "400 unable to parse option")


@pytest.fixture(params=[8, 9])
def check(request: pytest.FixtureRequest) -> Check:
    return checker(request.param)


REFUSED = [each for each in recorded("refused.txt") if any(words in each.said for words in FORMAT_ERRORS)]
STATE = [each for each in recorded("refused.txt") if each not in REFUSED]


@pytest.mark.parametrize("each", REFUSED, ids=lambda each: shlex.join(each.argv))
def test_what_proxmox_refuses_for_its_form_is_refused_before_it_runs(check: Check, each: Recorded) -> None:
    with pytest.raises(UsageError):
        check(each.argv)


@pytest.mark.parametrize("each", STATE, ids=lambda each: shlex.join(each.argv))
def test_what_proxmox_refuses_for_its_state_is_let_through(check: Check, each: Recorded) -> None:
    check(each.argv)


GOOD = """\
pct create 940 local:vztmpl/base.tar.zst --rootfs local:4 --hostname u940 --unprivileged 1 --tags 'vllm;tmpl'
pct create 940 local:vztmpl/base.tar.zst --rootfs local-zfs:0.5 --net0 name=eth0,bridge=vmbr0,ip=10.99.0.40/24,tag=4094
pct set 921 --dev0 path=/dev/nvidia0,mode=0666,deny-write=1 --dev255 /dev/nvidia-caps/nvidia-cap1,uid=1000,gid=44
pct set 941 --onboot 1 --startup order=3,up=30,down=60 --swap 0 --cpulimit 1.5
pct set 921 --mp0 /srv/models,mp=/models,ro=1
pct set 921 --net0 name=eth0,bridge=vmbr0,ip=dhcp,ip6=auto,hwaddr=BC:24:11:00:09:21,firewall=1,mtu=9000
pct set 921 --nameserver '10.0.0.53 2001:db8::1 fe80::1%eth0' --searchdomain 'lan,example.org'
pct set 921 --delete dev2,dev3
pct set 941 --tags 'Ok-1;x_y;z+.1' --description 'line one
line two'
pct clone 940 941 --full --hostname c941
pct exec 921 --keep-env 0 -- sh -c 'rm --nonsense'
pct exec 921 -- true
pct resize 921 rootfs +4G
pct shutdown 921 --timeout 60 --forceStop 1
pct destroy 977 --destroy-unreferenced-disks 1 --purge 1
pct set 921 --hostname=1abc.example.com
pvesm list local --vmid 977
pvesm path local:vztmpl/x.tar.zst
pvesm free local:977/vm-977-disk-0.raw
pvesh get /cluster/resources --type vm --output-format json
pvesh get /nodes/localhost/lxc/920/feature --feature clone --output-format json
pvesh get /nodes/localhost/tasks --source active --limit 500
sh -c 'pct nonsense'"""


@pytest.mark.parametrize("line", GOOD.replace("\nline", "\0line").splitlines())
def test_what_proxmox_takes_is_let_through(check: Check, line: str) -> None:
    check(shlex.split(line.replace("\0", "\n")))


BAD = {
    "pct sett 921 --memory 512": r"pct sett: .*did you mean pct set\?",
    "pct set 921 --memroy 512": r"pct set: has no option --memroy; did you mean memory\?",
    "pct set 921 --memory 1 --memory 2": r"--memory is given twice",
    "pct set 921 --memory": r"--memory needs a value",
    "pct set 921 --memory 1e3": r"--memory '1e3': must be a whole number",
    "pct set 921 --cores 9000": r"--cores '9000': must be from 1 to 8192",
    "pct set 921 --onboot maybe": r"--onboot 'maybe': must be 1 or 0",
    "pct set 921 --ostype debain": r"--ostype 'debain': must be one of alpine, .*",
    "pct set 921 --net32 name=eth0": r"--net32 is one too many: the last is --net31",
    "pct set 921 --net0 name=eth0,brigde=vmbr0": r"has no key 'brigde': did you mean bridge\?",
    "pct set 921 --net0 bridge=vmbr0": r"needs name=",
    "pct set 921 --net0 name=eth0,name=eth1": r"name is given twice",
    "pct set 921 --net0 name=eth0,hwaddr=BD:24:11:00:09:21": r"unicast MAC address",
    "pct set 921 --net0 name=eth0,tag=4095": r"tag=4095: must be from 1 to 4094",
    "pct set 921 --net0 name=eth0,ip=10.0.0.300/24": r"ip=10\.0\.0\.300/24: must be an IPv4 address",
    "pct set 921 --features nesting": r"'nesting' must be written KEY=VALUE",
    "pct set 921 --dev0 /dev/../etc/passwd": r"must be the path of a node below /dev/",
    "pct set 921 --dev0 /dev/nvidia0,mode=0999": r"mode=0999: must match 0\[0-7\]\{3\}",
    "pct set 921 --mp0 /srv/models": r"needs mp=",
    "pct set 921 --mp0 /srv/../etc,mp=/models": r"without the steps \. and \.\.",
    "pct set 921 --startup order=x": r"--startup 'order=x': must be order=N",
    "pct set 921 --hostname 'a\nb'": r"must be one line",
    "pct set 921 --lxc.mount.entry x": r"has no option --lxc\.mount\.entry",
    "pct create 921": r"needs <ostemplate>",
    "pct start 921 922": r"does not take the argument '922'",
    "pct exec 921 true": r"does not take the argument 'true'; write -- before a command",
    "pct exec 921 --": r"needs a command behind --",
    "pct start 12": r"<vmid> '12': must be from 100",
    "pvesh get /nodes/localhost/lxc/920/feature": r"needs --feature",
    "pvesh get /nodes/localhost/lxc/9/feature --feature clone": r"<vmid> '9'",
    "pvesh get /cluster/resourcs": r"did you mean /cluster/resources\?",
    "pvesh create /nodes/localhost/lxc": r"only `pvesh get PATH`",
}


@pytest.mark.parametrize("line", BAD)
def test_a_wrong_command_is_told_with_what_is_allowed(check: Check, line: str) -> None:
    with pytest.raises(UsageError, match=BAD[line]):
        check([word.replace("\\n", "\n") for word in shlex.split(line)])


def test_what_only_version_9_has_is_refused_for_8() -> None:
    checker(9)(["pct", "set", "921", "--entrypoint", "/bin/sleep 100"])
    with pytest.raises(UsageError, match="has no option --entrypoint"):
        checker(8)(["pct", "set", "921", "--entrypoint", "/bin/sleep 100"])


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
OCTET = st.integers(0, 255)
ADDRESS = st.tuples(OCTET, OCTET, OCTET, OCTET).map(lambda four: ".".join(map(str, four)))
MAC = st.lists(OCTET, min_size=5, max_size=5).map(lambda five: ":".join(f"{each:02x}" for each in [0x02, *five]))
NETWORKS = st.builds(
    Network,
    name=st.just("eth0"),
    bridge=st.from_regex(r"[a-z]{1,8}[0-9]{0,3}", fullmatch=True),
    ip=st.sampled_from(["dhcp", "manual"]) | st.builds("{}/{}".format, ADDRESS, st.integers(8, 32)),
    gateway=st.none() | ADDRESS,
    mac=st.none() | MAC,
    vlan=st.none() | st.integers(1, 4094),
    mtu=st.none() | st.integers(64, 65535),
    firewall=st.booleans(),
    nameservers=st.lists(ADDRESS, max_size=3).map(tuple),
    searchdomain=st.none() | LABEL,
)
CONTAINERS = st.builds(
    Container,
    ctid=st.integers(100, 999_999_999),
    name=LABEL,
    network=NETWORKS,
    memory_mib=st.integers(16, 1 << 20),
    swap_mib=st.integers(0, 1 << 20),
    cores=st.integers(1, 8192),
    onboot=st.booleans(),
    order=st.none() | st.integers(0, 99),
    delay=st.none() | st.integers(0, 600),
)
TAGS = st.lists(st.from_regex(r"[a-z0-9_][a-z0-9_+.-]{0,30}", fullmatch=True), max_size=5).map(tuple)
SETTINGS = st.builds(
    Settings,
    container=CONTAINERS,
    tags=TAGS,
    description=st.text(st.characters(min_codepoint=10, max_codepoint=126), max_size=200),
    devices=st.lists(st.builds(Device, st.sampled_from(["/dev/nvidia0", "/dev/nvidiactl"])), max_size=4).map(tuple),
)


@given(settings=SETTINGS, major=st.sampled_from([8, 9]))
def test_whatever_a_container_may_be_makes_a_command_that_proxmox_takes(settings: Settings, major: int) -> None:
    checker(major)(["pct", "set", str(settings.container.ctid), *config.options(settings)])


def refusal(major: int, argv: Sequence[str]) -> str:
    """What the check says against a command; nothing when it takes it."""
    try:
        checker(major)(argv)
    except UsageError as error:
        return str(error)
    return ""


@given(words=st.lists(st.text(max_size=20), max_size=8), major=st.sampled_from([8, 9]))
def test_nonsense_is_refused_with_one_line_and_never_more(words: list[str], major: int) -> None:
    assert refusal(major, ["pct", "set", *words]).isprintable()


@given(
    value=st.text(max_size=30),
    key=st.sampled_from(["net0", "dev0", "features", "rootfs", "tags", "startup", "hostname"]),
)
def test_any_value_is_refused_or_taken_never_a_traceback(key: str, value: str) -> None:
    said = refusal(8, ["pct", "set", "921", f"--{key}", value])
    assert not said or f"--{key}" in said
