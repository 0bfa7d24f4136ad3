"""Reading the bill of materials beside a template; `sbom` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.errors import BuilderError


def read(path: Path) -> Mapping[str, Any]:
    """The bill of materials at `path`. Raises BuilderError when it is missing or no JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=path, hint="build the template again") from error
    except (ValueError, RecursionError) as error:
        raise unsound(path) from error
    if not isinstance(found, dict):
        raise unsound(path)
    return found


def unsound(path: Path) -> BuilderError:
    """What to tell about the bill of materials at `path` when it lacks something that `sbom.render` writes."""
    return BuilderError("is no bill of materials", where=path, hint="build the template again")
