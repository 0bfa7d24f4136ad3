"""Reading the web for the lock: one session with retries, one error with the address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from builder.errors import BuilderError

_TIMEOUT = (15, 60)
"""Seconds to connect, and to wait for the next bytes."""


def new_session(jobs: int) -> requests.Session:
    """A session that keeps `jobs` connections to a host and tries again when a server is busy."""
    session = requests.Session()
    retry = Retry(total=5, backoff_factor=0.5, backoff_max=30, status_forcelist=(429, 500, 502, 503, 504))
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=jobs, pool_maxsize=jobs, max_retries=retry))
    return session


@contextmanager
def get(session: requests.Session, url: str, headers: Mapping[str, str]) -> Iterator[requests.Response]:
    """The answer to a GET, its body unread; whatever goes wrong in the block too raises BuilderError with the URL."""
    try:
        with session.get(url, headers=dict(headers), stream=True, timeout=_TIMEOUT) as response:
            if response.status_code != 200:
                raise BuilderError(f"HTTP {response.status_code} {response.reason}", where=shown(url))
            yield response
    except (requests.RequestException, OSError) as error:
        raise BuilderError(f"cannot be read: {error}", where=shown(url), hint="try again later") from error


def shown(url: str) -> str:
    """The URL without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
