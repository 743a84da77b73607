"""This machine's name among the nodes of one database: a UUID kept in the data folder."""

import os
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from django.conf import settings


@cache
def node_id() -> str:
    """Return the node's id, made at its first start."""
    folder: Path = settings.K1NODE_DATA
    path = folder / "node_id"
    if not path.exists():
        draft = folder / f"node_id.{os.getpid()}"
        draft.write_text(str(uuid.uuid4()))
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return str(uuid.UUID(path.read_text().strip()))
