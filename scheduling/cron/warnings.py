"""What people should know about a cron expression before the clocks change: which of its runs move or come twice."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from scheduling.cron import clock_changes
from scheduling.cron.calendar import TICK, CronExpression


def warnings(parsed: CronExpression, tz: ZoneInfo, after: datetime, horizon: timedelta) -> list[str]:
    """Return a sentence for each clock change within `horizon` of the UTC time `after` that touches a run."""
    sentences = (_warning(parsed, tz, change) for change in clock_changes.changes(tz, after, horizon))
    return [sentence for sentence in sentences if sentence]


def _warning(parsed: CronExpression, tz: ZoneInfo, change: datetime) -> str | None:
    new = change.astimezone(tz).replace(tzinfo=None, fold=0)
    old = (change - TICK).astimezone(tz).replace(tzinfo=None, fold=0) + TICK
    start, end = min(old, new), max(old, new)
    times = []
    wall = parsed.first_wall_time(start)
    while wall < end:
        times.append(f"{wall:%H:%M}")
        wall = parsed.first_wall_time(wall + TICK)
    if not times:
        return None
    skipped, single = old < new, len(times) == 1
    listed = times[0] if single else f"{', '.join(times[:-1])} and {times[-1]}"
    if len(times) > 4:
        listed = f"{times[0]}, {times[1]} … {times[-1]}"
    sentence = f"On {start:%Y-%m-%d} {listed} "
    if not skipped:
        sentence += f"{'comes' if single else 'come'} twice in {tz.key}; "
        return sentence + ("only the first time runs." if parsed.fixed else "both times run.")
    sentence += f"{'does' if single else 'do'} not exist in {tz.key}; "
    if not parsed.fixed:
        return sentence + "nothing runs instead."
    on = "" if new.date() == start.date() else f" on {new:%Y-%m-%d}"
    return f"{sentence}{'the run' if single else 'one run'} starts at {new:%H:%M}{on}."
