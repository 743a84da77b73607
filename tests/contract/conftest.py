"""A real node for the tools from outside, with a key that may do everything."""

import shutil
from collections.abc import Iterator

import pytest

from tests.node.running import PROJECT, RunningNode, running_node


@pytest.fixture(scope="session")
def contract_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """Return a node of this run's own that may run the sample agents, as the examples of the document do."""
    folder = tmp_path_factory.mktemp("contract")
    with running_node(folder) as node:
        shutil.copytree(PROJECT / "ops" / "agents", node.root / "ops" / "agents")
        yield node
