"""One of the node's programs, with its arguments."""

import sys

from . import pct, pvesh, pvesm
from .state import RefusedError, dpkg_query

PROGRAMS = {"pct": pct.main, "pvesh": pvesh.main, "pvesm": pvesm.main, "dpkg-query": dpkg_query}


def main() -> int:
    try:
        return PROGRAMS[sys.argv[1]](sys.argv[2:])
    except RefusedError as refused:
        print(refused, file=sys.stderr)
        return refused.status


sys.exit(main())
