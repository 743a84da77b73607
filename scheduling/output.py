"""What a run writes, bounded: the first 64 kB and the last 192 kB are kept, the middle is cut and said.

A chunk is a piece of one stream at a position: the count of bytes both streams had produced before it. Positions
never change, so a reader can ask "from offset N" while the run goes on, and sees a cut as a gap between positions.
"""

import codecs
from collections import deque
from dataclasses import dataclass

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 192 * 1024
CHUNK_BYTES = 16 * 1024
EXCERPT_BYTES = 8 * 1024  # of the beginning, for events
JOIN_BYTES = 1024  # small writes are joined at once up to this

STDOUT = "stdout"
STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Chunk:
    position: int
    stream: str
    data: bytes

    @property
    def end(self) -> int:
        return self.position + len(self.data)


class BoundedOutput:
    """Collects chunks in the order they were read; `take()` hands over what is new since the last take.

    One thread at a time. A write that an exception cuts short loses bytes, which reads as a cut; positions stay right.
    """

    __slots__ = ("_fresh_head", "_fresh_tail", "_opening", "total")

    def __init__(self) -> None:
        self.total = 0
        self._opening = b""
        self._fresh_head: list[Chunk] = []
        self._fresh_tail: deque[Chunk] = deque()

    def __len__(self) -> int:
        return self.total

    def beginning(self) -> tuple[str, bool]:
        """Return the beginning of the output as text of at most EXCERPT_BYTES, and whether there is more."""
        # A character that the end cuts in two is left out; PostgreSQL stores no NUL in JSON.
        is_cut = self.total > EXCERPT_BYTES
        text = codecs.utf_8_decode(self._opening, "replace", not is_cut)[0].replace("\0", "\ufffd")
        if not text.isascii() and len(written := text.encode()) > EXCERPT_BYTES:
            # What stands for bytes that are no text is longer than they are.
            return written[:EXCERPT_BYTES].decode("utf-8", "ignore"), True
        return text, is_cut

    @property
    def cut_before(self) -> int:
        """Return the position before which nothing of the tail is kept (0 while nothing is cut)."""
        return max(0, self.total - TAIL_BYTES)

    def write(self, stream: str, data: bytes) -> None:
        start = 0
        if self.total < EXCERPT_BYTES:
            self._opening += data[: EXCERPT_BYTES - self.total]
        while start < len(data):
            position = self.total
            room = min(CHUNK_BYTES, HEAD_BYTES - position) if position < HEAD_BYTES else CHUNK_BYTES
            piece = data[start : start + room]
            start += len(piece)
            self.total += len(piece)
            fresh = self._fresh_head if position < HEAD_BYTES else self._fresh_tail
            last = fresh[-1] if fresh else None
            # A program that writes byte by byte must not cost an object for each.
            if last is not None and last.stream == stream and len(last.data) + len(piece) <= JOIN_BYTES:
                fresh[-1] = Chunk(last.position, stream, last.data + piece)
            else:
                fresh.append(Chunk(position, stream, piece))
        self._drop_what_is_cut()

    def take(self) -> list[Chunk]:
        """Return the chunks written since the last call, small neighbours of one stream joined."""
        fresh = self._fresh_head + list(self._fresh_tail)
        self._fresh_head = []
        self._fresh_tail.clear()
        return join(fresh)

    def restore(self, chunks: list[Chunk]) -> None:
        """Put back what the last take() gave, because it could not be stored; what has been cut since falls away."""
        self._fresh_head[:0] = [chunk for chunk in chunks if chunk.position < HEAD_BYTES]
        self._fresh_tail.extendleft(chunk for chunk in reversed(chunks) if chunk.position >= HEAD_BYTES)
        self._drop_what_is_cut()

    def _drop_what_is_cut(self) -> None:
        while self._fresh_tail and self._fresh_tail[0].end <= self.cut_before:
            self._fresh_tail.popleft()


def join(chunks: list[Chunk]) -> list[Chunk]:
    """Return `chunks` with adjacent pieces of one stream merged up to CHUNK_BYTES: fewer rows, same bytes."""
    joined: list[Chunk] = []
    for chunk in chunks:
        last = joined[-1] if joined else None
        fits = last is not None and last.end == chunk.position and last.stream == chunk.stream
        crosses_head = last is not None and last.position < HEAD_BYTES <= chunk.position
        if last is not None and fits and not crosses_head and len(last.data) + len(chunk.data) <= CHUNK_BYTES:
            joined[-1] = Chunk(last.position, last.stream, last.data + chunk.data)
        else:
            joined.append(chunk)
    return joined


def is_cut_away(chunk_position: int, chunk_end: int, total: int) -> bool:
    """Say whether a stored chunk has fallen out of the kept tail of a run that wrote `total` bytes."""
    return chunk_position >= HEAD_BYTES and chunk_end <= total - TAIL_BYTES
