"""Time zones by their IANA names."""

import re
from difflib import get_close_matches
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from k1node.lib.errors import FieldInvalid

_ZONE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}", re.ASCII)
_NOT_ZONES = {"localtime", "posixrules", "Factory", "posix", "right"}


class TimeZoneInvalid(FieldInvalid):
    """The time zone is not known."""

    def __init__(self, message: str, suggestion: str, field: str = "timezone") -> None:
        super().__init__(field, message, suggestion)


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """Return the IANA time zone `name`. Raises TimeZoneInvalid, with a likely name where there is one.

    Nothing but the zone database is read: names that look like paths, and `localtime`, which is a different
    zone on each machine, are refused before the look-up.
    """
    if len(name) <= 64 and _ZONE_NAME.fullmatch(name) and name.split("/")[0] not in _NOT_ZONES:
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # KeyError: no such file; OSError: a folder such as America
            pass
    raise TimeZoneInvalid(f"{name[:64]!r} is not a known time zone", _likely_zone(name[:64]))


def _likely_zone(name: str) -> str:
    names = sorted(available_timezones() - _NOT_ZONES)
    spelled = {name.rsplit("/", 1)[-1].lower(): name for name in names} | {name.lower(): name for name in names}
    wanted = re.sub(r"[\s-]+", "_", name.strip().lower())
    close = get_close_matches(wanted, spelled, n=1, cutoff=0.75)
    return f"Did you mean {spelled[close[0]]}?" if close else "Use an IANA name such as Europe/Berlin or UTC"
