"""Wait until the vLLM server described by a serve.yaml has given one real completion or embedding.

Usage: ready.py SERVE_YAML. Exit 0 once an answer came back; 1 when the server refuses the request for good, or ends.
How long to wait is the service manager's to say (TimeoutStartSec). Read from the environment: the server's process
(MAINPID, as systemd sets it) and the API key (VLLM_API_KEY).
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

import yaml


def base_url(settings):
    host = str(settings.get("host") or "127.0.0.1")
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{settings.get('port') or 8000}"


def call(url, body=None):
    """The JSON answer to GET, or to POST of `body`. Raises urllib.error.URLError, HTTPError and OSError."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=1700) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def is_running(pid):
    """Whether the process is there and no zombie; True when there is no pid to look at."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return not pid


def wait_for_port(base):
    while True:
        try:
            call(f"{base}/health")
            return
        except (OSError, ValueError):
            if not is_running(os.environ.get("MAINPID")):
                sys.exit("vLLM ended before it answered")
            time.sleep(1)


def main(path):
    with open(path, encoding="utf-8") as file:
        settings = yaml.safe_load(file) or {}
    base = base_url(settings)
    wait_for_port(base)
    model = call(f"{base}/v1/models")["data"][0]["id"]
    if settings.get("runner") == "pooling" or settings.get("task") in ("embed", "embedding"):
        answer = call(f"{base}/v1/embeddings", {"model": model, "input": "ready?"})
        proof = len(answer["data"][0]["embedding"])
        print(f"{model}: embedding of {proof} numbers")
    else:
        answer = call(f"{base}/v1/completions", {"model": model, "prompt": "ready?", "max_tokens": 4, "temperature": 0})
        proof = answer["usage"]["completion_tokens"]
        print(f"{model}: completion of {proof} tokens")
    return 0 if proof else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except urllib.error.HTTPError as error:
        sys.exit(f"vLLM refused the first request: HTTP {error.code}: {error.read(500).decode(errors='replace')}")
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"vLLM did not answer the first request: {error}")
