"""schemathesis, with all of its checks, against a running node: what it sends comes from the committed document.

To look further than one run does, give it another seed and more time:
    schemathesis --config-file tests/contract/schemathesis.toml run docs/openapi.json --url … --max-examples 500
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from k1node.api.renderers import JSON_V2
from k1node.management.commands.openapi import DOCUMENT
from tests.node.running import PROJECT, RunningNode

pytestmark = pytest.mark.contract

CONFIGURATION = Path(__file__).parent / "schemathesis.toml"
EXAMPLES = 5
SECONDS = 600  # it takes about 90 where nothing else runs
WORKERS = 1  # Python 3.11 parses source in one thread at a time, and Hypothesis parses to describe what it draws


def written_once(folder: Path) -> Path:
    """Return the document with each request's body in plain JSON alone: sent under two names it finds nothing more."""
    told = json.loads(DOCUMENT.read_bytes())
    for item in told["paths"].values():
        for operation in item.values():
            operation.get("requestBody", {}).get("content", {}).pop(JSON_V2, None)
    path = folder / "openapi.json"
    path.write_text(json.dumps(told))
    return path


def own_key(node: RunningNode) -> str:
    """Return the key_id of the node's first key, with which everything is asked."""
    answer = node.call("GET", "/api-keys")
    return str(answer["api_keys"][-1]["key_id"])


def test_schemathesis_finds_nothing(contract_node: RunningNode, tmp_path: Path) -> None:
    command = [
        *(Path(sys.executable).parent / "schemathesis", "--config-file", CONFIGURATION),
        *("run", written_once(tmp_path), "--url", f"http://127.0.0.1:{contract_node.port}/api/v2"),
        *("--header", f"Authorization: Bearer {contract_node.key}"),
        *("--checks", "all", "--max-examples", EXAMPLES, "--workers", WORKERS, "--warnings", "off"),
        *("--phases", os.environ.get("K1_CONTRACT_PHASES", "examples,coverage,fuzzing,stateful")),
    ]

    done = subprocess.run(
        [str(part) for part in command],
        cwd=PROJECT,
        env=os.environ
        | {"PYTHONPATH": str(PROJECT), "COLUMNS": "100", "NO_COLOR": "1", "K1_CONTRACT_KEY_ID": own_key(contract_node)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    print(done.stdout[-1_500:])  # shown with -s: how much was tried
    assert "No issues found" in done.stdout


def test_the_node_has_met_no_error_of_its_own(contract_node: RunningNode) -> None:
    """After the above: what schemathesis sends must not be an error in the log either."""
    assert "Request failed" not in contract_node.log()
    assert "Traceback" not in contract_node.log()
