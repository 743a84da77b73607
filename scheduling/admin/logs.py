"""The output of one run, made readable: neighbours of a stream together, colour codes gone, what was cut said."""

import re
from dataclasses import dataclass, field

from k1node.lib.admin_display import size
from scheduling import queries
from scheduling.models import OutputChunk, Task
from scheduling.output import HEAD_BYTES, TAIL_BYTES

MOST_BYTES = 4 * (HEAD_BYTES + TAIL_BYTES)  # a run keeps a quarter of this and a little more
MOST_PIECES = 2_000  # on a page; two streams that write in turns, byte by byte, could make a hundred thousand
CUT = "cut"
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
# Control characters become their pictures; those that turn the direction of text could hide what is written.
SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
SHOWN |= dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one stream, or (stream "cut") what is said in the place of what was not kept."""

    stream: str
    text: str


@dataclass(slots=True)
class Log:
    fence: int
    total: int  # bytes written, so far if it runs
    kept: int
    is_running: bool
    pieces: list[Piece] = field(default_factory=list)
    not_shown: int = 0  # pieces beyond MOST_PIECES


def read(task: Task, run: queries.Run) -> Log:
    """Return what is stored of `run`, for reading on a page."""
    output = queries.output_from(task, run, 0, MOST_BYTES)
    cuts = [(cut["from"], CUT, f"{size(cut['to'] - cut['from'])} not kept") for cut in output["cut"]]
    texts = [(chunk["offset"], chunk["stream"], chunk["text"]) for chunk in output["chunks"]]
    lost = sum(cut["to"] - cut["from"] for cut in output["cut"])
    joined: list[tuple[str, list[str]]] = []
    for _, stream, text in sorted([*cuts, *texts], key=lambda item: item[0]):
        if joined and joined[-1][0] == stream:
            joined[-1][1].append(text)
        else:
            joined.append((stream, [text]))
    return Log(
        fence=run.fence,
        total=output["total"],
        kept=output["next_offset"] - lost,
        is_running=run.total is None,
        pieces=[Piece(stream, readable("".join(texts))) for stream, texts in joined[:MOST_PIECES]],
        not_shown=max(0, len(joined) - MOST_PIECES),
    )


def raw(task: Task, fence: int) -> bytes:
    """Return the stored bytes, both streams in the order they were read, with a line where some were cut."""
    out = bytearray()
    end = 0
    rows = OutputChunk.objects.filter(task=task, fence=fence).order_by("position")
    for position, data in rows.values_list("position", "data"):
        if position > end:
            out += f"\n[{size(position - end)} not kept]\n".encode()
        out += data
        end = position + len(data)
    return bytes(out)


def readable(text: str) -> str:
    """Return text without colour codes, with control characters as pictures."""
    text = ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(SHOWN)
