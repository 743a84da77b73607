"""Log lines: what an error leaves there."""

import logging
from collections.abc import Iterator

import pytest
from django.conf import settings

from k1node.lib import logs


@pytest.fixture(autouse=True)
def _configured_again() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.configure(level=settings.LOG_LEVEL, as_json=settings.PRODUCTION, role=settings.K1NODE_ROLE)
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_shows_no_variables(as_json: bool, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="INFO", as_json=as_json, role="")
    credential = "-".join(("sk", "k1n_0123456789"))

    try:
        raise ValueError(f"refused {credential[-4:]}")
    except ValueError:
        logging.getLogger("k1node.test").exception("It failed")

    said = capfd.readouterr().err
    assert "It failed" in said and "ValueError: refused 6789" in said
    assert credential not in said
