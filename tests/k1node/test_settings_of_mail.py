"""The settings of mail: what follows from those that are given, and what stops the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

ASK = "from k1node import settings as s; print(s.EMAIL_PORT, s.EMAIL_USE_TLS, s.EMAIL_USE_SSL, s.DEFAULT_FROM_EMAIL)"


def asked(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Read the settings in a process of their own."""
    environment = os.environ | {"K1NODE_DATA": str(tmp_path)} | variables
    command = [sys.executable, "-c", ASK]
    return subprocess.run(
        command, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("variables", "read"),
    [
        pytest.param({}, "25 False False k1node@localhost", id="none"),
        pytest.param({"EMAIL_HOST_USER": "me@b.org"}, "587 True False me@b.org", id="a password goes over TLS"),
        pytest.param({"EMAIL_HOST_USER": "me", "EMAIL_USE_SSL": "1"}, "465 False True k1node@localhost", id="SSL"),
        pytest.param(
            {"EMAIL_HOST_USER": "me", "EMAIL_USE_TLS": "0", "EMAIL_PORT": "2525", "DEFAULT_FROM_EMAIL": "K1 <k@b.org>"},
            "2525 False False K1 <k@b.org>",
            id="as one wishes",
        ),
    ],
)
def test_what_is_left_out_follows_from_the_rest(tmp_path: Path, variables: dict[str, str], read: str) -> None:
    assert asked(tmp_path, **variables).stdout.strip() == read


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EMAIL_USE_TLS": "1", "EMAIL_USE_SSL": "1"}, "EMAIL_USE_TLS and EMAIL_USE_SSL exclude each other"),
        ({"DEFAULT_FROM_EMAIL": "nobody"}, "DEFAULT_FROM_EMAIL must be an e-mail address, not 'nobody'."),
        ({"K1NODE_URL": "k1.example.org"}, "K1NODE_URL must begin with http:// or https://, not 'k1.example.org'."),
    ],
)
def test_nonsense_stops_the_start(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    refused = asked(tmp_path, **variables)

    assert refused.returncode == 1
    assert f"ImproperlyConfigured: {message}" in refused.stderr
