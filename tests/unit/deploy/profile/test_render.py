"""serve.yaml and env: read back by a YAML parser, a parser with systemd's rules, and safe to have."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.model import Container, File, Network
from builder.deploy.profile import Model, Profile, load, names, render
from builder.deploy.profile.secrets import Secrets
from builder.errors import UsageError

RECIPES = Path(__file__).parents[4] / "recipes"
TINY = Profile("tiny", "", Model("", None, "/models/tiny"), "tiny", "completion", 1, 0.5, {}, {})
KEY = Secrets(api_key="k3y")


def container(ip: str = "10.0.0.21/24") -> Container:
    return Container(921, "tiny", network=Network(ip=ip))


def serve(files: tuple[File, ...]) -> dict[str, object]:
    assert files[0].path == "/etc/vllm/serve.yaml"
    found = yaml.safe_load(files[0].content)
    assert isinstance(found, dict)
    return found


def variables(files: tuple[File, ...]) -> dict[str, str]:
    """The environment's file by the rules of systemd.exec(5), for what is written: comments, bare and double-quoted."""
    assert files[1].path == "/etc/vllm/env"
    found = {}
    for line in files[1].content.decode().splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.partition("=")
        if value.startswith('"'):
            assert re.fullmatch(r'"(?:[^"\\$`]|\\["\\$`])*"', value)
            value = re.sub(r'\\(["\\$`])', r"\1", value[1:-1])
        else:
            assert not re.search(r"""[\s\\"'`$#;]""", value)
        found[name] = value
    return found


def test_a_profile_as_it_is_written() -> None:
    made = replace(
        TINY,
        served_name="tiny: the model",
        options={"kv-cache-dtype": "fp8", "block-size": 32, "enforce-eager": True, "enable-prefix-caching": False},
        environment={"PLAIN": "/a/b:c", "ODD": 'a "b" $c `d` \\e'},
    )
    files = render(made, container(), KEY)
    assert files[0].content.decode() == (
        "# Written by `builder deploy`: profile tiny. Change the profile, not this file.\n"
        'model: "/models/tiny"\n'
        'served-model-name: "tiny: the model"\n'
        'host: "10.0.0.21"\n'
        "port: 8000\n"
        "gpu-memory-utilization: 0.5\n"
        "block-size: 32\n"
        "no-enable-prefix-caching: true\n"
        "enforce-eager: true\n"
        'kv-cache-dtype: "fp8"\n'
    )
    assert files[1].content.decode() == (
        "# Written by `builder deploy`: profile tiny. Change the profile, not this file.\n"
        'ODD="a \\"b\\" \\$c \\`d\\` \\\\e"\n'
        "PLAIN=/a/b:c\n"
        "VLLM_API_KEY=k3y\n"
    )


def test_a_file_with_a_secret_is_root_s_alone_and_marked() -> None:
    plain, secret = render(TINY, container(), KEY)
    assert (plain.mode, plain.owner, plain.group, plain.secret) == (0o644, "root", "root", False)
    assert (secret.mode, secret.owner, secret.group, secret.secret) == (0o600, "root", "root", True)
    assert b"k3y" not in plain.content


def test_the_hub_s_token_does_not_go_into_a_container() -> None:
    files = render(TINY, container(), Secrets(api_key="k3y", token="hf_secret"))
    assert not any(b"hf_secret" in file.content for file in files)


def test_the_order_of_options_does_not_matter() -> None:
    one = replace(TINY, options={"a": 1, "b": 2}, environment={"A": "1", "B": "2"})
    other = replace(TINY, options={"b": 2, "a": 1}, environment={"B": "2", "A": "1"})
    assert render(one, container(), KEY) == render(other, container(), KEY)


def test_it_listens_on_the_container_s_own_address() -> None:
    assert serve(render(TINY, container(), KEY))["host"] == "10.0.0.21"


def test_with_dhcp_it_listens_on_all_of_the_container_s_and_wants_a_key() -> None:
    assert serve(render(TINY, container("dhcp"), KEY))["host"] == "0.0.0.0"
    with pytest.raises(UsageError, match=r"would listen on 0\.0\.0\.0 without an API key; give --api-key-file"):
        render(TINY, container("dhcp"), Secrets())


def test_the_profile_s_address_comes_before_and_the_command_line_s_before_that() -> None:
    made = replace(TINY, host="127.0.0.1")
    assert serve(render(made, container(), KEY))["host"] == "127.0.0.1"
    assert serve(render(made, container(), KEY, listen="0.0.0.0"))["host"] == "0.0.0.0"


def test_a_public_address_must_be_said() -> None:
    with pytest.raises(
        UsageError, match=r"would listen on 8\.8\.8\.8, which is a public address; give --listen 8\.8\.8\.8"
    ):
        render(TINY, container("8.8.8.8/24"), KEY)
    assert serve(render(TINY, container("8.8.8.8/24"), KEY, listen="8.8.8.8"))["host"] == "8.8.8.8"


def test_without_a_key_it_listens_for_itself_or_where_it_is_told() -> None:
    env = render(replace(TINY, host="localhost"), container(), Secrets())[1]
    assert (env.mode, env.secret) == (0o644, False)
    assert serve(render(TINY, container(), Secrets(), listen="10.0.0.21"))["host"] == "10.0.0.21"


@pytest.mark.parametrize("listen", ["", "a b", "x\ny: z", "--help", "10.0.0.21/24", "localhost", "10.0.0"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(UsageError, match=r"--listen: .* is no IP address; give one"):
        render(TINY, container(), KEY, listen=listen)


@pytest.mark.parametrize("host", ["a b", "x\ny: z", "--help", "10.0.0.21/24"])
def test_a_profiles_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=r"container 921: .* must be"):
        render(replace(TINY, host=host), container(), KEY)


@pytest.mark.parametrize("value", ["a\nb", "a\x00b", "a\x1bb", "\ud800"])
def test_text_that_is_not_one_printable_line_is_refused(value: str) -> None:
    for made in (
        replace(TINY, environment={"A": value}),
        replace(TINY, options={"a": value}),
        replace(TINY, served_name=value),
    ):
        with pytest.raises(UsageError, match="printable"):
            render(made, container(), KEY)


printable = st.text(min_size=1, max_size=30).filter(str.isprintable)
values = st.one_of(
    printable.filter(lambda text: not text.startswith("-")),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.just(True),
)


@given(st.dictionaries(st.from_regex(r"[a-z]{2,6}(-[a-z]{2,6})?", fullmatch=True), values, max_size=5))
def test_any_option_is_read_back_as_it_was(options: dict[str, str | int | float | bool]) -> None:
    for reserved in ("host", "port", "model", "config"):
        options.pop(reserved, None)
    found = serve(render(replace(TINY, options=options), container(), KEY))
    read = {name: found[name] for name in options}
    assert read == options
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in options.items()}


@given(st.dictionaries(st.from_regex(r"[A-Z]{1,6}_", fullmatch=True), st.one_of(st.just(""), printable), max_size=5))
def test_any_variable_is_read_back_as_it_was(environment: dict[str, str]) -> None:
    found = variables(render(replace(TINY, environment=environment), container(), KEY))
    assert found == {**environment, "VLLM_API_KEY": "k3y"}


@pytest.mark.parametrize("recipe", ["vllm-blackwell", "vllm-cpu"])
def test_the_shipped_profiles_are_read_back_as_they_are(recipe: str) -> None:
    for name in names(RECIPES / recipe):
        made = load(RECIPES / recipe, name)
        files = render(made, container(), KEY)
        assert variables(files) == {**made.environment, "VLLM_API_KEY": "k3y"}
        own = {"model": made.model.path, "served-model-name": made.served_name, "host": "10.0.0.21", "port": 8000}
        share = {"gpu-memory-utilization": made.share} if made.gpus else {}
        assert serve(files) == {**own, **share, **made.options}
