"""A small template that nothing is wrong with, and profiles that vLLM would serve: each test breaks one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builder import tree
from builder.check import Finding, Severity, Subject, rules
from builder.check.look import look, view
from builder.check.tree import of_layers
from builder.recipe.model import Target

SITE = "opt/vllm/lib/python3.11/site-packages"
CARD = Target("GeForce RTX 5060 Ti", "12.0", 2, 16311)
METADATA = """\
Metadata-Version: 2.4
Name: vllm
Version: 0.10.2
Requires-Dist: torch==2.8.0
Requires-Dist: transformers>=4.55.2
Requires-Dist: flashinfer-python==0.3.0; extra == "flashinfer"
Requires-Dist: importlib_metadata; python_version < "3.10"
"""
ENVS = """
environment_variables = {
    "VLLM_ATTENTION_BACKEND": lambda: None,
    "VLLM_USE_V1": lambda: None,
    "VLLM_USE_FLASHINFER_SAMPLER": lambda: None,
    "VLLM_NO_USAGE_STATS": lambda: None,
}
"""
UNIT = """\
[Service]
Environment=PATH=/opt/vllm/bin:/usr/bin:/bin
Environment="HOME=/var/lib/vllm"
ExecStart=/opt/vllm/bin/vllm serve --config /etc/vllm/serve.yaml
"""
TEMPLATE: Mapping[str, str] = {
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "etc/debian_version": "12.12\n",
    "etc/machine-id": "",
    "etc/environment": "",
    "etc/shadow": "root:*:20000::::::\n",
    "etc/network/interfaces": "",
    "etc/ssh/sshd_config": "",
    "sbin/init": "",
    "sbin/ifup": "",
    "sbin/dhclient": "",
    "bin/sh": "",
    "usr/bin/gcc": "",
    "usr/include/python3.11/Python.h": "",
    "usr/lib/systemd/system/vllm.service": UNIT,
    f"{SITE}/vllm-0.10.2.dist-info/METADATA": METADATA,
    f"{SITE}/vllm/envs.py": ENVS,
    f"{SITE}/torch-2.8.0.dist-info/METADATA": "Name: torch\n",
    f"{SITE}/torch/version.py": "__version__ = '2.8.0+cu128'\ncuda: Optional[str] = '12.8'\n",
    f"{SITE}/transformers-4.56.2.dist-info/METADATA": "Name: transformers\n",
}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MODERNBERT = {"model_type": "modernbert", "architectures": ["ModernBertModel"]}
AWQ = {"model_type": "qwen2", "quantization_config": {"quant_method": "awq", "bits": 4}}
SETTINGS = {"VLLM_USE_V1": "1", "CUDA_CACHE_PATH": "/var/cache/vllm/nv", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


@dataclass(frozen=True)
class MadeModel:
    path: str = "/models/made"
    shape: Mapping[str, Any] = field(default_factory=lambda: LLAMA)


@dataclass(frozen=True)
class MadeProfile:
    """A profile as checks see one."""

    name: str = "made"
    model: MadeModel = MadeModel()
    task: str = "completion"
    gpus: int = 1
    share: float = 0.9
    host: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: SETTINGS)

    def having(self, **options: Any) -> MadeProfile:
        """With these options, written with underscores."""
        return replace(
            self, options={**self.options, **{key.replace("_", "-"): value for key, value in options.items()}}
        )

    def within(self, **environment: str) -> MadeProfile:
        """With these variables in its environment."""
        return replace(self, environment={**self.environment, **environment})

    def without(self, name: str) -> MadeProfile:
        """With a variable less."""
        return replace(self, environment={key: value for key, value in self.environment.items() if key != name})

    def shaped(self, shape: Mapping[str, Any]) -> MadeProfile:
        return replace(self, model=MadeModel(shape=shape))


Make = Callable[..., Subject]
GOOD = MadeProfile()


def make_subject(
    root: Path,
    files: Mapping[str, str | None] | None = None,
    *,
    modes: Mapping[str, int] | None = None,
    target: Target | None = CARD,
) -> Subject:
    """A template in the empty folder `root`, with files more (None: less) than `TEMPLATE`; `modes` by path."""
    for name, text in {**TEMPLATE, **(files or {})}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    for name, mode in (modes or {}).items():
        (root / name).chmod(mode)
    return Subject("made", of_layers([(tree.scan(root), root)]), target)


def judged(subject: Subject, profile: MadeProfile | None = None) -> list[Finding]:
    """What the rules say about the profile in the template, or about the template alone."""
    seen = look(subject)
    return list(rules.of_profile(view(seen, profile)) if profile else rules.of_template(seen))


def ids(findings: Iterable[Finding], *severities: Severity) -> set[str]:
    """The rules that found something, of these severities or of any."""
    return {finding.rule for finding in findings if not severities or finding.severity in severities}
