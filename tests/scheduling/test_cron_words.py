import pytest

from scheduling import cron


@pytest.mark.parametrize(
    ("expression", "zone", "words"),
    [
        ("@daily", "UTC", "At 00:00"),
        ("@hourly", "UTC", "Every hour"),
        ("@weekly", "UTC", "At 00:00, only on Sunday"),
        ("@monthly", "UTC", "At 00:00, on day 1 of the month"),
        ("@yearly", "UTC", "At 00:00, on day 1 of the month, only in January"),
        ("*/15 * * * *", "UTC", "Every 15 minutes"),
        ("30 14 * * mon-fri", "Europe/Berlin", "At 14:30, Monday through Friday (Europe/Berlin)"),
        ("1 */2 * * *", "UTC", "At 1 minute past the hour, every 2 hours"),
        ("0,30 1 * * *", "UTC", "At 0 and 30 minutes past the hour, at 01:00"),
        ("0 22-2 * * *", "UTC", "At 0 minutes past the hour, between 22:00 and 02:59"),
        ("50/15 1 * * *", "UTC", "At 01:50"),
        ("0 9-9 * * *", "UTC", "At 09:00"),
        ("0 1,*/8 * * *", "UTC", "At 00:00, 01:00, 08:00 and 16:00"),
        ("0 0 L * *", "UTC", "At 00:00, on the last day of the month"),
        ("0 0 l,15 * *", "UTC", "At 00:00, on day 15 of the month and on the last day of the month"),
        ("0 0 15W * *", "UTC", "At 00:00, on the weekday nearest day 15 of the month"),
        ("0 0 13 * 5", "UTC", "At 00:00, on day 13 of the month or on Friday"),
        ("0 0 13 * 5#3", "UTC", "At 00:00, on day 13 of the month or on the third Friday of the month"),
        ("0 0 13 * MON-FRI", "UTC", "At 00:00, on day 13 of the month or Monday through Friday"),
        ("0 0 */2 * MON", "UTC", "At 00:00, every 2 days, only on Monday"),
        ("0 0 ? * MON", "UTC", "At 00:00, only on Monday"),
        ("0 0 * * 0-7", "UTC", "At 00:00, Sunday through Saturday"),
        ("0 0 * * 1/2", "UTC", "At 00:00, only on Monday, Wednesday, and Friday"),
        (
            "0 0 * * 5#3,1#1",
            "UTC",
            "At 00:00, on the third Friday of the month and on the first Monday of the month",
        ),
        ("0 0 * jan-mar,nov *", "UTC", "At 00:00, only in January through March and November"),
        ("0 0 29 2 *", "Asia/Tokyo", "At 00:00, on day 29 of the month, only in February (Asia/Tokyo)"),
    ],
    ids=lambda value: value if value[:1] in "@*0123456789" else "",
)
def test_expressions_read_as_sentences(expression: str, zone: str, words: str) -> None:
    assert cron.describe(expression, zone) == words


def test_what_cannot_be_parsed_is_not_described() -> None:
    with pytest.raises(cron.ScheduleExpressionInvalid):
        cron.describe("*/15 * * * * *", "UTC")
    with pytest.raises(cron.TimeZoneInvalid):
        cron.describe("*/15 * * * *", "Mars/Olympus")
