"""recipes/NAME/profiles/PROFILE.toml: what it means, what it takes from another, the one error of each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builder.deploy import profile as profiles
from builder.deploy.profile import settings
from builder.errors import UsageError

ROOT = Path(__file__).parents[4]
GPU, CPU = ROOT / "recipes/vllm-blackwell", ROOT / "recipes/vllm-cpu"

TINY = """\
[Profile]
Description = "tiny"
[Model]
Repository = "lab/Tiny"
Path = "/models/Tiny"
[Options]
served-model-name = "tiny"
gpu-memory-utilization = 0.5
"""


def write(folder: Path, **files: str) -> Path:
    (folder / "profiles").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "profiles" / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def error(folder: Path, text: str, name: str = "tiny") -> str:
    with pytest.raises(UsageError) as caught:
        profiles.load(write(folder, tiny=text), name)
    return str(caught.value).removeprefix(f"{folder}/profiles/")


def test_a_profile_with_every_key(tmp_path: Path) -> None:
    text = """
        [Profile]
        Description = "everything"
        Gpus = 4
        Fallback = "small"
        [Model]
        Repository = "lab/Tiny"
        Revision = "0123456789012345678901234567890123456789"
        Path = "/models/Tiny"
        [Model.Shape]
        architectures = ["LlamaForCausalLM"]
        rope_scaling = { factor = 8.0 }
        [Options]
        served-model-name = "tiny"
        gpu-memory-utilization = 0.75
        tensor-parallel-size = 2
        pipeline-parallel-size = 2
        port = 9000
        host = "127.0.0.1"
        runner = "pooling"
        enforce-eager = true
        [Environment]
        VLLM_USE_V1 = "1"
        [Bench]
        InputTokens = 10
        OutputTokens = 20
        Concurrency = [1, 2]
        Expected = "much"
        """
    made = profiles.load(write(tmp_path, all=text), "all")
    model = profiles.Model(
        "lab/Tiny",
        "0123456789012345678901234567890123456789",
        "/models/Tiny",
        {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"factor": 8.0}},
    )
    assert made == profiles.Profile(
        name="all",
        description="everything",
        model=model,
        served_name="tiny",
        task="embedding",
        gpus=4,
        share=0.75,
        options={
            "tensor-parallel-size": 2,
            "pipeline-parallel-size": 2,
            "runner": "pooling",
            "enforce-eager": True,
        },
        environment={"VLLM_USE_V1": "1"},
        fallback="small",
        port=9000,
        host="127.0.0.1",
        bench=profiles.Bench(10, 20, (1, 2), "much"),
        source=str(tmp_path / "profiles/all.toml"),
    )


def test_a_profile_has_what_it_extends_but_for_its_own_keys(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        common='[Environment]\nA = "common"\nB = "common"\n',
        tiny=TINY.replace("[Model]", 'Extends = "common"\nFallback = "other"\n[Model]') + '[Environment]\nB = "tiny"\n',
        wide='[Profile]\nDescription = "wide"\nExtends = "tiny"\nGpus = 2\n'
        '[Options]\ntensor-parallel-size = 2\n[Environment]\nC = "wide"\n',
    )
    tiny, wide = profiles.load(folder, "tiny"), profiles.load(folder, "wide")
    assert tiny.environment == {"A": "common", "B": "tiny"}
    assert wide.environment == {"A": "common", "B": "tiny", "C": "wide"}
    assert (wide.model, wide.share, wide.fallback) == (tiny.model, tiny.share, "other")
    assert (wide.description, wide.gpus, wide.options) == ("wide", 2, {"tensor-parallel-size": 2})


def test_a_file_that_is_only_extended_is_no_profile(tmp_path: Path) -> None:
    folder = write(tmp_path, common='[Environment]\nA = "1"\n', tiny=TINY, wide='[Profile]\nExtends = "tiny"\n')
    assert profiles.names(folder) == ("tiny", "wide")
    with pytest.raises(UsageError, match="has no Description"):
        profiles.load(folder, "common")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[Options]", "[Option]", "tiny.toml:6: unknown key 'Option' at the top; did you mean \"Options\"?"),
        ("Path =", "Pth =", 'tiny.toml:5: unknown key "Pth" in [Model]; did you mean "Path"?'),
        ('Path = "/models/Tiny"\n', "", "tiny.toml:3: [Model] has no Path; Path: Its folder in the container."),
        ("[Model]", "Path = 1\n[Model]", 'tiny.toml:3: unknown key "Path" in [Profile]; it belongs in [Model]'),
        ("/models/Tiny", "/models/../Tiny", "tiny.toml:5: Path in [Model] must be an absolute path"),
        ("lab/Tiny", "Tiny", "tiny.toml:4: Repository in [Model] must be a name such as"),
        ("[Options]", "Revision = 'main'\n[Options]", "tiny.toml:6: Revision in [Model] must be a commit"),
        ("[Model]", "Gpus = -1\n[Model]", "tiny.toml:3: Gpus in [Profile] must be from 0 to 16, not -1"),
        ("[Model]", "Gpus = 2\n[Model]", "tiny.toml:3: Gpus is 2, and tensor-parallel-size times"),
        ("[Model]", "Extends = 'tin'\n[Model]", "tiny.toml:3: there is no 'tin' to extend; did you mean \"tiny\"?"),
        ("[Model]", "Extends = 'tiny'\n[Model]", "tiny.toml:3: it extends itself in the end"),
        ("[Model]", "Extends = '../tiny'\n[Model]", "tiny.toml:3: there is no '../tiny' to extend"),
        ("served-model-name", "served_model_name", "tiny.toml:7: 'served_model_name' in [Options] is no option"),
        ("served-model-name", "--served-model-name", "tiny.toml:7: '--served-model-name' in [Options] is no option"),
        ('served-model-name = "tiny"\n', "", "tiny.toml:6: [Options] has no served-model-name"),
        ("gpu-memory-utilization = 0.5\n", "", "tiny.toml:6: [Options] has no gpu-memory-utilization"),
        ("0.5", "90", "tiny.toml:8: 'gpu-memory-utilization' in [Options] must be a share"),
        ("0.5", "nan", "tiny.toml:8: 'gpu-memory-utilization' in [Options] must be a finite number"),
        ("0.5", "true", "tiny.toml:8: 'gpu-memory-utilization' in [Options] must be a share"),
        ("0.5", "[0.5]", "tiny.toml:8: 'gpu-memory-utilization' in [Options] must be text, a number, true or false"),
        ("0.5\n", '0.5\nmodel = "x"\n', "tiny.toml:9: 'model' in [Options] does not belong here: the model is [Model]"),
        ("0.5\n", '0.5\napi-key = "x"\n', "tiny.toml:9: 'api-key' in [Options] does not belong here: a secret"),
        ("0.5\n", "0.5\nport = 80\n", "tiny.toml:9: 'port' in [Options] must be from 1024 to 65535"),
        ("0.5\n", '0.5\nhost = "a b"\n', "tiny.toml:9: 'host' in [Options] must be an address or a host name"),
        ("0.5\n", '0.5\ndtype = "-x"\n', "tiny.toml:9: 'dtype' in [Options] must be printable text on one line that"),
        ("0.5\n", '0.5\ndtype = "a\\nb"\n', "tiny.toml:9: 'dtype' in [Options] must be printable text on one line"),
        ("0.5\n", "0.5\n[Environment]\nA = 1\n", "tiny.toml:10: 'A' in [Environment] must be text: put it in quotes"),
        ("0.5\n", '0.5\n[Environment]\n"A B" = "1"\n', "tiny.toml:10: 'A B' in [Environment] is no name of a variable"),
        ("0.5\n", '0.5\n[Environment]\nA = "a\\nb"\n', "tiny.toml:10: 'A' in [Environment] must be printable text"),
        ("0.5\n", '0.5\n[Environment]\nVLLM_API_KEY = "x"\n', "tiny.toml:10: 'VLLM_API_KEY' in [Environment] sounds"),
        ("0.5\n", "0.5\n[Bench]\nConcurrency = [0]\n", "tiny.toml:10: Concurrency in [Bench] is wrong: must be"),
        ("[Options]", "Shape = { a = 2020-01-01 }\n[Options]", "tiny.toml:6: Shape is wrong: it must be a table as"),
    ],
)
def test_what_is_wrong_is_one_error_with_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in TINY
    assert error(tmp_path, TINY.replace(old, new, 1)).startswith(says)


def test_a_name_that_is_not_there_gets_the_nearest(tmp_path: Path) -> None:
    assert error(tmp_path, TINY, "tny").endswith("profiles: no profile 'tny'; did you mean \"tiny\"?")
    assert "no profile '../tiny'" in error(tmp_path, TINY, "../tiny")


def test_the_recipe_of_a_profile_is_found_by_its_name(tmp_path: Path) -> None:
    for recipe, name in (("one", "tiny"), ("two", "tiny"), ("two", "wide")):
        (tmp_path / recipe).mkdir(exist_ok=True)
        write(tmp_path / recipe, **{name: TINY})
    assert profiles.find("wide", tmp_path) == tmp_path / "two"
    with pytest.raises(UsageError, match=r"several recipes have a profile 'tiny'; give --recipe: .*/one, .*/two"):
        profiles.find("tiny", tmp_path)
    with pytest.raises(UsageError, match=r"no recipe has a profile 'wid'; did you mean \"wide\"\?"):
        profiles.find("wid", tmp_path)


def shipped() -> dict[str, profiles.Profile]:
    return {name: profiles.load(GPU, name) for name in profiles.names(GPU)}


def test_the_shipped_profiles() -> None:
    assert set(shipped()) == {"fp8", "fp8-tp2", "fp8-fast", "awq", "embed", "nvfp4"}
    assert profiles.names(CPU) == ("cpu",)
    assert profiles.load(CPU, "cpu").gpus == 0


def test_the_shipped_profiles_fit_two_cards_as_they_are_placed() -> None:
    made = shipped()
    cards = {"0": ("awq", "embed"), "1": ("fp8",)}
    for names in cards.values():
        assert all(made[name].gpus == 1 for name in names)
        assert sum(made[name].share for name in names) <= 0.92
    assert (made["fp8-tp2"].gpus, made["fp8-tp2"].share) == (2, 0.9)


def test_an_fp8_cache_is_served_by_triton_in_blocks_of_32_and_nothing_else_is() -> None:
    for made in shipped().values():
        has_fp8_cache = made.options.get("kv-cache-dtype") == "fp8"
        assert (made.environment.get("VLLM_ATTENTION_BACKEND") == "TRITON_ATTN_VLLM_V1") == has_fp8_cache
        assert (made.options.get("block-size") == 32) == has_fp8_cache


def test_every_shipped_profile_is_offline_v1_and_keeps_its_caches() -> None:
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V1": "1",
        "VLLM_CACHE_ROOT": "/var/cache/vllm",
        "TRITON_CACHE_DIR": "/var/cache/vllm/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/var/cache/vllm/inductor",
        "CUDA_CACHE_PATH": "/var/cache/vllm/nv",
        "CUDA_CACHE_MAXSIZE": "4294967296",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    for made in shipped().values():
        assert wanted.items() <= made.environment.items()
    assert {made.name for made in shipped().values() if "NCCL_P2P_DISABLE" in made.environment} == {"fp8-tp2"}


def test_fallbacks_are_profiles_of_the_same_recipe() -> None:
    made = shipped()
    for profile in made.values():
        assert profile.fallback is None or profile.fallback in made


def test_profiles_of_one_model_agree_on_it() -> None:
    models: dict[str, Any] = {}
    for made in shipped().values():
        assert models.setdefault(made.model.path, made.model) == made.model
        assert made.model.shape["architectures"]


def test_the_manual_has_the_tables_of_keys_and_every_profile() -> None:
    text = (ROOT / "docs/profiles.md").read_text(encoding="utf-8")
    assert settings.manual() in text
    for name in (*profiles.names(GPU), *profiles.names(CPU)):
        assert f"`{name}`" in text
