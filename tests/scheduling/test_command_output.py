import pytest

from scheduling.execution import command_output
from scheduling.output import HEAD_BYTES, STDOUT, TAIL_BYTES, Chunk
from tests.scheduling.runs import COMPLETED, Run, written

pytestmark = pytest.mark.usefixtures("worker_process")


def test_both_streams_are_kept_in_order(run: Run) -> None:
    outcome = run("for i in 1 2 3; do echo out$i; sleep 0.02; echo err$i >&2; sleep 0.02; done")

    assert outcome.output is not None
    chunks = outcome.output.take()
    assert [chunk.data for chunk in chunks] == [b"out1\n", b"err1\n", b"out2\n", b"err2\n", b"out3\n", b"err3\n"]
    assert [chunk.position for chunk in chunks] == [0, 5, 10, 15, 20, 25]


def test_ten_megabytes_are_cut_in_the_middle(run: Run) -> None:
    outcome = run("import sys\nfor i in range(1_000_000): sys.stdout.write(f'{i:09}\\n')", interpreter="python3")

    full = b"".join(b"%09d\n" % number for number in range(1_000_000))
    assert outcome.output is not None
    assert outcome.output.total == len(full)
    chunks = outcome.output.take()
    assert b"".join(chunk.data for chunk in chunks if chunk.position < HEAD_BYTES) == full[:HEAD_BYTES]
    assert b"".join(chunk.data for chunk in chunks if chunk.position >= HEAD_BYTES)[-TAIL_BYTES:] == full[-TAIL_BYTES:]
    assert sum(len(chunk.data) for chunk in chunks) < HEAD_BYTES + TAIL_BYTES + 20_000
    assert all(full[chunk.position : chunk.end] == chunk.data for chunk in chunks)


def test_bytes_are_kept_as_they_are(run: Run) -> None:
    outcome = run(r"printf 'a\0b\377\nno newline'")

    assert written(outcome) == b"a\0b\xff\nno newline"


def test_output_is_flushed_while_running(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_output, "FLUSH_SECONDS", 0.05)
    flushed: list[list[Chunk]] = []

    outcome = run("echo one; sleep 0.15; echo two; sleep 0.1; echo three; exit 4", on_flush=flushed.append)

    assert flushed[0] == [Chunk(0, STDOUT, b"one\n")]
    assert flushed[1][0].position == 4
    assert b"".join(chunk.data for chunks in flushed for chunk in chunks) + written(outcome) == b"one\ntwo\nthree\n"
    assert outcome.error == "Exited with status 4: three"


def test_short_runs_are_not_flushed(run: Run) -> None:
    flushed: list[list[Chunk]] = []

    outcome = run("echo one", on_flush=flushed.append)

    assert (flushed, written(outcome)) == ([], b"one\n")


def test_output_that_could_not_be_flushed_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_output, "FLUSH_SECONDS", 0.03)

    def broken(chunks: list[Chunk]) -> None:
        raise RuntimeError("the database is away")

    outcome = run("echo one; sleep 0.1; echo two", on_flush=broken)

    assert (outcome.kind, written(outcome)) == (COMPLETED, b"one\ntwo\n")
