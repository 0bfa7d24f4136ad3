"""What is said about the GPU code of a template."""

from __future__ import annotations

from pathlib import Path

import pytest
from fatbins import Code, container, elf
from madetemplate import CARD, GOOD, SITE, Make, ids

from builder import tree
from builder.check import Finding, Severity, Subject, code, versions
from builder.check.look import look, view
from builder.check.simulate import Decided
from builder.check.tree import of_layers
from builder.gpucode import Library
from builder.progress import Silent
from builder.store import Store

EXACT = container(Code("cubin", 120, payload=b"y" * 4096))
PTX = container(Code("ptx", 80, isa=(8, 7), payload=b"z" * 4096))
NEWER = container(Code("ptx", 80, isa=(9, 0), payload=b"z" * 4096))
NOTHING = container(Code("cubin", 90, "a", payload=b"x" * 4096))


@pytest.fixture
def read(make: Make, tmp_path: Path) -> object:
    """Puts a library into the made template and reads the template's GPU code."""

    def read(path: str, *containers: bytes) -> tuple[Subject, tuple[Library, ...]]:
        place = tmp_path / "root" / path
        place.parent.mkdir(parents=True)
        place.write_bytes(elf({".nv_fatbin": b"".join(containers)}))
        subject = make()
        found = code.libraries(subject, Store(tmp_path / "store").scratch, Silent())
        assert found is not None
        return subject, found

    return read


def judged(subject: Subject, found: tuple[Library, ...], isa: tuple[int, int] | None = None) -> list[Finding]:
    return list(code.judge(look(subject), found, isa))


def test_machine_code_for_the_card(read) -> None:
    (finding,) = judged(*read("opt/x.so", EXACT, NOTHING))
    assert finding.what == "1 units of 1 libraries have machine code for 12.0"


def test_ptx_alone_is_compiled_at_first_use(read) -> None:
    found = judged(*read("opt/x.so", EXACT, PTX))
    assert ids(found, Severity.WARNING) == {"gpu-code-ptx"}
    assert "1 of 2 units" in found[0].what


def test_ptx_too_new_for_the_templates_driver(read) -> None:
    assert ids(judged(*read("opt/x.so", NEWER), (8, 7)), Severity.ERROR) == {"gpu-code-too-new"}


def test_a_library_for_other_cards(read) -> None:
    assert ids(judged(*read("opt/x.so", NOTHING)), Severity.WARNING) == {"gpu-code-nothing"}


def test_a_library_that_vllm_refuses_on_this_card_is_a_note(read) -> None:
    found = judged(*read(f"{SITE}/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", NOTHING))
    assert ids(found) == ids(found, Severity.NOTE) == {"gpu-code-nothing"}


def test_kernels_outside_fat_binaries_are_not_checked(read) -> None:
    found = judged(*read("opt/libcufft.so.11", NOTHING))
    assert ids(found, Severity.NOT_CHECKED) == {"gpu-code-elsewhere"}
    assert "gpu-code-nothing" not in ids(found)


def test_a_library_that_cannot_be_read_is_not_checked(read) -> None:
    found = judged(*read("opt/x.so", EXACT[:-8]))
    assert ids(found, Severity.NOT_CHECKED) == {"gpu-code"}


def test_a_template_for_a_card_without_gpu_code(make: Make) -> None:
    (finding,) = judged(make(), ())
    assert (finding.rule, finding.severity) == ("gpu-code", Severity.WARNING)
    assert not judged(make(target=None), ())


def test_a_damaged_library_of_attention_is_not_called_fast(read) -> None:
    subject, found = read(f"{SITE}/vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", EXACT[:-8])
    (finding,) = code.first_requests([Decided(view(look(subject), GOOD), (), "FlashAttentionBackend")], found)
    assert (finding.rule, finding.severity) == ("attention-ptx", Severity.NOT_CHECKED)


def test_without_a_target_nothing_is_concluded(read) -> None:
    subject, found = read("opt/x.so", NOTHING)
    (finding,) = judged(Subject("made", subject.tree, None), found)
    assert finding.severity is Severity.NOT_CHECKED


def test_ptx_asks_for_a_driver_with_the_file_that_does(read) -> None:
    subject, found = read("opt/x.so", NEWER)
    need, _ = versions.driver(look(subject), found)
    assert need.what == "needs a driver of 580.65.06 or later"
    assert need.evidence == "PTX of ISA 9.0 in opt/x.so"


def test_ptx_beside_machine_code_asks_for_none(read) -> None:
    both = container(Code("cubin", 120, payload=b"y" * 4096), Code("ptx", 80, isa=(9, 0)))
    subject, found = read("opt/x.so", both)
    assert versions.needs(look(subject), found)[0].driver == "570.26"


@pytest.mark.parametrize(("unit", "is_slow"), [(PTX, True), (EXACT, False)])
def test_a_profile_whose_attention_is_ptx_alone(read, unit: bytes, is_slow: bool) -> None:
    subject, found = read(f"{SITE}/vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", unit)
    seen = view(look(subject), GOOD)
    told = list(code.first_requests([Decided(seen, (), "FlashAttentionBackend")], found))
    assert (ids(told) == {"attention-ptx"}) is is_slow
    assert {finding.subject for finding in told} <= {"profile made on the simulated card"}
    assert not list(code.first_requests([Decided(seen, (), "TritonAttentionBackend")], found))


def test_a_library_that_a_layer_above_replaces_does_not_count(tmp_path: Path) -> None:
    below, above = tmp_path / "below", tmp_path / "above"
    for layer, unit in ((below, NOTHING), (above, EXACT)):
        layer.mkdir()
        (layer / "x.so").write_bytes(elf({".nv_fatbin": unit}))
    subject = Subject("made", of_layers([(tree.scan(below), below), (tree.scan(above), above)]), CARD)
    found = code.libraries(subject, Store(tmp_path / "store").scratch, Silent())
    assert found is not None
    assert ids(judged(subject, found)) == {"gpu-code"}
