import pytest

from k1node.lib.errors import Detail
from scheduling.cron.zones import TimeZoneInvalid, zone

OTHERWISE = "Use an IANA name such as Europe/Berlin or UTC"


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "EST5EDT"])
def test_iana_zones_are_known(name: str) -> None:
    assert zone(name).key == name
    assert zone(name) is zone(name)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        pytest.param("Europe/Berln", "Did you mean Europe/Berlin?", id="a letter missing"),
        pytest.param("europe/paris", "Did you mean Europe/Paris?", id="small letters"),
        pytest.param("utc", "Did you mean UTC?", id="utc"),
        pytest.param("New York", "Did you mean America/New_York?", id="the city alone"),
        pytest.param("", OTHERWISE, id="empty"),
        pytest.param("Mars/Olympus", OTHERWISE, id="elsewhere"),
        pytest.param("../../etc/passwd", OTHERWISE, id="parent folder"),
        pytest.param("/etc/hosts", OTHERWISE, id="absolute path"),
        pytest.param("posix/UTC", OTHERWISE, id="other database"),
        pytest.param("Zürich\x00", "Did you mean Europe/Zurich?", id="not ASCII and a zero byte"),
        pytest.param("zone.tab", OTHERWISE, id="file that is no zone"),
        pytest.param("x" * 10_000, OTHERWISE, id="very long"),
    ],
)
def test_unknown_zones_are_refused_with_a_likely_name(name: str, suggestion: str) -> None:
    with pytest.raises(TimeZoneInvalid) as caught:
        zone(name)

    assert caught.value.details == (Detail("timezone", f"{name[:64]!r} is not a known time zone", suggestion),)


@pytest.mark.parametrize("name", ["localtime", "right/UTC", "America", "leapseconds", "Factory"])
def test_files_beside_the_zones_are_refused(name: str) -> None:
    with pytest.raises(TimeZoneInvalid):
        zone(name)
