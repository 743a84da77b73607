"""The node's board: a small memory-mapped file that all processes of one node read and write.

It holds what must be known at once and without the database: which worker runs what, how loaded the machine is,
whether the node drains, and the heartbeats by which `up` sees that a cluster of workers still lives. Nothing on it
has to last: what must, is in the database. It survives the death of every process, so that after kill -9 of anything
the next one can see which task was really running.

Who writes: a worker its own slot; the pusher and the sentinel their cluster's beats; clock and sender their own beat;
`up` the load, the drain mark, the retirement of clusters and the clearing of slots whose process is gone. A worker
becomes busy only under the board's lock and only if its cluster is not retired, which is what lets `up` end the idle
processes of a broken cluster without ending an innocent run.
"""

import ctypes
import fcntl
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAGIC = 0x4B314206
SLOTS = 256
CLUSTERS = 16

FREE = 0  # nobody's
IDLE = 1  # a worker waiting for a token
BUSY = 2  # a worker that claims, runs or settles
GONE = 3  # its process has died while busy and its command is ended: the clock may rescue


class _Cluster(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint32),  # 0: no cluster here
        ("parent_pid", ctypes.c_uint32),  # the number of the cluster's session too
        ("retired", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("started_at", ctypes.c_double),  # monotonic seconds, like all times here
        ("sentinel_at", ctypes.c_double),
        ("pusher_at", ctypes.c_double),
        ("sent", ctypes.c_uint64),  # wake tokens
        ("picked", ctypes.c_uint64),
        ("finished", ctypes.c_uint64),
        ("acknowledged", ctypes.c_uint64),
        ("parent_born", ctypes.c_uint64),  # the parent's start time, against reused pids
    )


class _Slot(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("born", ctypes.c_uint64),  # the process's start time, against reused pids
        ("cluster", ctypes.c_uint32),
        ("group", ctypes.c_uint32),  # process group of the running command, 0 for none
        ("task", ctypes.c_uint64),  # primary key of the task running now, 0 for none
        ("fence", ctypes.c_uint64),
        ("since", ctypes.c_double),
    )


class _Board(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("drain_until", ctypes.c_double),  # 0: no drain
        ("cpu_percent", ctypes.c_double),
        ("memory_percent", ctypes.c_double),
        ("sampled_at", ctypes.c_double),
        ("clock_at", ctypes.c_double),
        ("sender_at", ctypes.c_double),
        ("boot", ctypes.c_uint64),  # which start of the machine the times and pids belong to
        ("next_cluster", ctypes.c_uint32),
        ("reserved2", ctypes.c_uint32),
        ("clusters", _Cluster * CLUSTERS),
        ("slots", _Slot * SLOTS),
    )


def process_birth(pid: int) -> int:
    """Return the start time of `pid` in clock ticks since boot, 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    state, rest = stat.rpartition(b")")[2].split(None, 1)
    # A zombie has no code left to run.
    return 0 if state == b"Z" else int(rest.split()[18])


def boot_mark() -> int:
    """Return a number that tells this start of the machine from all others."""
    return int(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:16], 16)


class Board:
    """One node's board, at `path`. Made when missing or of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._threads = threading.RLock()
        self._depth = 0
        self._pid = os.getpid()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._flocked():
            if os.fstat(self._file).st_size < ctypes.sizeof(_Board):
                os.ftruncate(self._file, ctypes.sizeof(_Board))
            self._map = mmap.mmap(self._file, ctypes.sizeof(_Board))
            self._data = _Board.from_buffer(self._map)
            # Made once: views of the same memory, and what a loop over all of them costs.
            self._clusters: tuple[_Cluster, ...] = tuple(self._data.clusters)
            self._slots: tuple[_Slot, ...] = tuple(self._data.slots)
            if self._data.magic != MAGIC:
                ctypes.memset(ctypes.addressof(self._data), 0, ctypes.sizeof(_Board))
                self._data.magic = MAGIC
                self._data.next_cluster = 1

    @contextmanager
    def _flocked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the board against every other process and thread; nothing slow may happen inside."""
        if self._pid != os.getpid():
            self._reopen()
        with self._threads:
            self._depth += 1
            try:
                if self._depth == 1:
                    fcntl.flock(self._file, fcntl.LOCK_EX)
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def _reopen(self) -> None:
        # A descriptor inherited through fork shares its parent's lock; the mapping itself is shared on purpose.
        self._threads = threading.RLock()
        self._depth = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._pid = os.getpid()

    def begin_life(self) -> None:
        """Make the board ready for a new `up`: nothing drains, earlier clusters take no more work.

        Workers of the life before may still be at work. After a restart of the machine none can be: monotonic times
        and pids have begun anew.
        """
        with self.locked():
            data = self._data
            data.drain_until = data.sampled_at = data.clock_at = data.sender_at = 0
            for entry in self.clusters():
                entry.retired = 1
            if data.boot == boot_mark():
                return
            for entry in self.clusters():
                entry.number = 0
            for _index, slot in self.slots():
                slot.state = FREE if slot.state == IDLE else GONE
            data.boot = boot_mark()

    # --- load, drain, the beats of clock and sender -------------------------------------------------------------

    def record_load(self, cpu_percent: float, memory_percent: float) -> None:
        self._data.cpu_percent = cpu_percent
        self._data.memory_percent = memory_percent
        self._data.sampled_at = time.monotonic()

    @property
    def load(self) -> tuple[float, float] | None:
        """Return (smoothed CPU %, memory %), or None when nobody has measured for 10 s."""
        if time.monotonic() - self._data.sampled_at > 10:
            return None
        return self._data.cpu_percent, self._data.memory_percent

    def drain(self, until: float) -> None:
        """Ask the workers to stop: no new claims, what runs may go on until the monotonic time `until`."""
        self._data.drain_until = until

    @property
    def drain_until(self) -> float:
        return float(self._data.drain_until)

    def clock_beat(self) -> None:
        """Say that the clock still ticks; it must do so at least every few seconds, whatever it waits for."""
        self._data.clock_at = time.monotonic()

    @property
    def clock_at(self) -> float:
        """Return the monotonic time of the clock's last tick, 0 if it has not ticked in this life."""
        return float(self._data.clock_at)

    def sender_beat(self) -> None:
        """Say that the sender still sends, as the clock does."""
        self._data.sender_at = time.monotonic()

    @property
    def sender_at(self) -> float:
        """Return the monotonic time of the sender's last beat, 0 if there was none in this life."""
        return float(self._data.sender_at)

    # --- clusters -----------------------------------------------------------------------------------------------

    def open_cluster(self, workers: int) -> int:
        """Register a new cluster and return its number."""
        with self.locked():
            free = next((entry for entry in self._clusters if entry.number == 0), None)
            if free is None:
                raise RuntimeError("The board has no room for another cluster")
            ctypes.memset(ctypes.addressof(free), 0, ctypes.sizeof(_Cluster))
            number = int(self._data.next_cluster)
            self._data.next_cluster = number + 1
            free.workers = workers
            free.started_at = free.sentinel_at = free.pusher_at = time.monotonic()
            free.number = number
            return number

    def cluster(self, number: int) -> _Cluster | None:
        for entry in self._clusters:
            if number and entry.number == number:
                return entry
        return None

    def name_parent(self, number: int, pid: int) -> None:
        """Note the process that is the cluster's parent and leads its session."""
        with self.locked():
            entry = self.cluster(number)
            if entry is not None:
                entry.parent_pid, entry.parent_born = pid, process_birth(pid)

    def cluster_of(self, slot: "WorkerSlot") -> _Cluster | None:
        return self.cluster(self.slot(slot.index).cluster)

    def retire_cluster(self, number: int) -> set[int]:
        """Forbid the cluster's workers to take work; return the pids of those that are at work now."""
        with self.locked():
            entry = self.cluster(number)
            if entry is not None:
                entry.retired = 1
            return {slot.pid for slot in self.slots_of(number) if slot.state == BUSY}

    def count_lost_token(self, number: int) -> None:
        """Count a token as answered that a worker took with it when it died, so that another may be sent."""
        with self.locked():
            entry = self.cluster(number)
            if entry is not None:
                entry.finished += 1
                entry.acknowledged += 1

    def close_cluster(self, number: int) -> None:
        with self.locked():
            entry = self.cluster(number)
            if entry is not None:
                entry.number = 0

    def clusters(self) -> list[_Cluster]:
        return [entry for entry in self._clusters if entry.number]

    # --- workers ------------------------------------------------------------------------------------------------

    def take_slot(self, cluster: int) -> "WorkerSlot":
        """Give the calling process a slot of its own."""
        pid = os.getpid()
        with self.locked():
            own = (index for index, slot in self.slots() if slot.pid == pid and slot.state == IDLE)
            free = (index for index, slot in enumerate(self._slots) if slot.state == FREE)
            index = next(own, next(free, None))
            if index is None:
                raise RuntimeError("The board has no free worker slot")
            slot = self._slots[index]
            ctypes.memset(ctypes.addressof(slot), 0, ctypes.sizeof(_Slot))
            slot.pid, slot.born, slot.cluster = pid, process_birth(pid), cluster
            slot.state = IDLE
            return WorkerSlot(self, index)

    def slots(self) -> list[tuple[int, _Slot]]:
        """Return (index, slot) of every slot in use."""
        return [(index, slot) for index, slot in enumerate(self._slots) if slot.state != FREE]

    def slots_of(self, cluster: int) -> list[_Slot]:
        return [slot for slot in self._slots if slot.state != FREE and slot.cluster == cluster]

    def slot(self, index: int) -> _Slot:
        return self._slots[index]

    def running(self) -> int:
        """Return how many workers are at work: the figure that the concurrency limit bounds."""
        return sum(1 for slot in self._slots if slot.state in (BUSY, GONE))

    def is_full(self, most: int) -> bool:
        """Say whether `most` workers are at work already; a hint, WorkerSlot.begin() decides."""
        return self.running() >= most

    def free_slot(self, index: int) -> None:
        with self.locked():
            self._slots[index].state = FREE

    def mark_gone(self, index: int) -> None:
        """Release a dead worker's task for the clock; only once nothing of its command can run any more."""
        with self.locked():
            self._slots[index].state = GONE

    @staticmethod
    def is_alive(slot: _Slot) -> bool:
        return bool(process_birth(slot.pid) == slot.born != 0)


class WorkerSlot:
    """A worker's own place on the board."""

    def __init__(self, board: Board, index: int) -> None:
        self.board = board
        self.index = index
        self._slot = board.slot(index)

    def begin(self, *, max_running: int) -> bool:
        """Become busy; False when the node has `max_running` at work, the cluster is retired or the node drains."""
        board = self.board
        with board.locked():
            if self.is_retired or board.drain_until or board.running() >= max_running:
                return False
            self._slot.since = time.monotonic()
            self._slot.state = BUSY
            return True

    def end(self) -> None:
        with self.board.locked():
            self._slot.task = self._slot.group = 0
            self._slot.state = IDLE

    def running(self, task: int, fence: int) -> None:
        """Note the task that starts now (0, 0 for none); no lock, only this process writes it."""
        self._slot.fence = fence
        self._slot.task = task

    def group(self, process_group: int) -> None:
        self._slot.group = process_group

    def kill_group(self) -> None:
        """Kill the command that runs now, if there is one."""
        group = int(self._slot.group)
        if group:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    @property
    def is_retired(self) -> bool:
        """Say whether this worker may take no more work; a cluster that is not on the board any more is retired."""
        number = int(self._slot.cluster)
        cluster = self.board.cluster(number)
        return number != 0 and (cluster is None or bool(cluster.retired))

    def leave(self) -> None:
        self.board.free_slot(self.index)
