"""Hardware addresses that follow from name and ctid."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.addresses import mac_for
from builder.deploy.containers.values import mac


@given(st.text(), st.integers(100, 999_999_999))
def test_any_container_has_an_address_that_proxmox_takes(name: str, ctid: int) -> None:
    address = mac_for(name, ctid)
    assert mac(address) is None
    assert int(address[:2], 16) & 3 == 2, "unicast and locally administered"


def test_it_stays_the_same_over_releases() -> None:
    assert mac_for("vllm-fp8", 921) == "F2:91:6D:BC:FA:AD"


def test_another_name_or_ctid_has_another() -> None:
    assert len({mac_for("a", 921), mac_for("b", 921), mac_for("a", 922)}) == 3
