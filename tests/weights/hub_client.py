"""Fetches from a local hub in another process: huggingface_hub reads its environment on import."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from tests.weights.hub_server import Hub

_BEFORE = """
import json, sys, time
from huggingface_hub import constants
from remem_jax.checks import SettingError

constants.DOWNLOAD_CHUNK_SIZE = 2**14  # Downloads resume at multiples of it.
time.sleep = lambda seconds: None  # Between two attempts.
"""
_AFTER = """
for name in sys.argv[1:]:
    try:
        print(json.dumps(fetch(name)))
    except SettingError as error:
        print(json.dumps(str(error)))
"""


def environment(site: Hub, cache: pathlib.Path, **variables: str) -> dict[str, str]:
    """Returns the environment of a process that takes a local hub for that of Hugging Face."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE"))}
    hosts = "127.0.0.1,localhost"
    settings = {"HF_ENDPOINT": site.url, "HF_HOME": str(cache), "NO_PROXY": hosts, **variables}
    return {**clean, **settings}


def started(
    code: str, site: Hub, cache: pathlib.Path, *names: str, **variables: str
) -> subprocess.Popen[str]:
    """Starts a process that fetches repositories.

    Args:
        code: Defines `fetch(name)`, which returns JSON values or raises `SettingError`.
        site: The hub.
        cache: Folder of the cache.
        names: The repositories.
        variables: Environment variables, such as HF_TOKEN.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _BEFORE + code + _AFTER, *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(site, cache, **variables),
    )


def outcomes(process: subprocess.Popen[str]) -> list[Any]:
    """Returns what `fetch` returned for each name, or the message of its error."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]
