"""What /proc says about the processes of this machine, and which of them belong together."""

import os
import signal
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    group: int
    session: int
    born: int  # clock ticks since boot
    is_dead: bool  # a zombie: it runs no more code


Table = dict[int, Process]


def read() -> Table:
    """Return every process by its pid. Not atomic: what starts or ends during the reading may be missing or stale."""
    table: Table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                process = _parse(int(name), Path(f"/proc/{name}/stat").read_text(errors="replace"))
                table[process.pid] = process
    return table


def _parse(pid: int, stat: str) -> Process:
    # The command's name stands in parentheses and may hold any character, so the fields are counted from the last ")".
    fields = stat.rpartition(")")[2].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        born=int(fields[19]),
        is_dead=fields[0] in "ZX",
    )


def children(pid: int) -> set[int]:
    """Return the direct children of `pid`, adopted ones too: a few microseconds where the kernel lists them."""
    try:
        found: set[int] = set()
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.update(map(int, (task / "children").read_text().split()))
        return found
    except FileNotFoundError:
        return {process.pid for process in read().values() if process.parent == pid}


def session_members(table: Table, leader: int, leader_born: int) -> set[int]:
    """Return the living members of the session that the process `leader`, born at `leader_born`, has made.

    The number of a session stays taken while it has members, so only a leader of another birth is somebody else's.
    """
    first = table.get(leader)
    if not leader or (first is not None and first.born != leader_born):
        return set()
    return {process.pid for process in table.values() if process.session == leader and not process.is_dead}


def descendants(table: Table, roots: Collection[int]) -> set[int]:
    """Return all living processes below `roots`, without the roots."""
    below: dict[int, list[Process]] = {}
    for process in table.values():
        below.setdefault(process.parent, []).append(process)
    found: set[int] = set()
    ahead = list(roots)
    while ahead:
        for process in below.get(ahead.pop(), ()):
            if process.pid not in found:
                found.add(process.pid)
                ahead.append(process.pid)
    return {pid for pid in found if not table[pid].is_dead} - set(roots)


def environment(pid: int) -> dict[bytes, bytes]:
    """Return the variables `pid` was started with; empty when it is gone or another user's."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(pair.split(b"=", 1) for pair in text.split(b"\0") if b"=" in pair)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


ROUNDS = 50


def kill_until_none(victims: Callable[[Table], set[int]]) -> set[int]:
    """Kill what `victims` picks from the table, again until it picks nothing new: a fork may hide from one look.

    Returns the pids killed. They run no more code, though some may not have left the table yet.
    """
    killed: set[tuple[int, int]] = set()
    for _round in range(ROUNDS):
        table = read()
        found = {(pid, table[pid].born) for pid in victims(table)} - killed
        if not found:
            break
        send((pid for pid, _born in found), signal.SIGKILL)
        killed |= found
    return {pid for pid, _born in killed}
