"""What is wrong with thousands of items, in an answer that can still be read."""

import re
from collections.abc import Sequence

from k1node.lib.errors import Detail

MOST = 100
PLACE = re.compile(r"tasks\[([0-9]+)\]")


def folded(details: Sequence[Detail]) -> tuple[Detail, ...]:
    """Return the first MOST problems, and one that counts the others and names every item that they are about."""
    if len(details) <= MOST:
        return tuple(details)
    first, others = details[:MOST], details[MOST:]
    told = {_place(each) for each in first}
    places = sorted({place for each in others if (place := _place(each)) is not None} - told)
    message = f"{len(others):,} more problems"
    if places:
        message += f", of {len(places):,} more items: {_ranges(places)}"
    return (*first, Detail("tasks", message, "Mend the first, and send all of them again"))


def _place(detail: Detail) -> int | None:
    found = PLACE.match(detail.field)
    return int(found[1]) if found else None


def _ranges(places: Sequence[int]) -> str:
    """Return sorted numbers as `3, 5-9`."""
    parts: list[list[int]] = []
    for place in places:
        if parts and parts[-1][1] == place - 1:
            parts[-1][1] = place
        else:
            parts.append([place, place])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
