import os

import pytest

from scheduling.output import (
    CHUNK_BYTES,
    EXCERPT_BYTES,
    HEAD_BYTES,
    JOIN_BYTES,
    STDERR,
    STDOUT,
    TAIL_BYTES,
    BoundedOutput,
    Chunk,
    is_cut_away,
    join,
)


def joined(chunks: list[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def test_short_output_is_one_chunk() -> None:
    output = BoundedOutput()
    output.write(STDOUT, b"one\n")
    output.write(STDOUT, b"two\n")

    assert output.take() == [Chunk(0, STDOUT, b"one\ntwo\n")]
    assert (len(output), output.cut_before) == (8, 0)


def test_streams_keep_their_order_and_positions() -> None:
    output = BoundedOutput()
    output.write(STDOUT, b"a")
    output.write(STDERR, b"bc")
    output.write(STDOUT, b"d")

    assert output.take() == [Chunk(0, STDOUT, b"a"), Chunk(1, STDERR, b"bc"), Chunk(3, STDOUT, b"d")]


def test_take_hands_over_only_what_is_new() -> None:
    output = BoundedOutput()
    output.write(STDOUT, b"first")
    first = output.take()
    output.write(STDOUT, b"second")

    assert first == [Chunk(0, STDOUT, b"first")]
    assert output.take() == [Chunk(5, STDOUT, b"second")]
    assert output.take() == []


def test_the_middle_of_a_long_output_is_cut() -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    output = BoundedOutput()
    for start in range(0, len(data), 65_521):
        output.write(STDOUT, data[start : start + 65_521])

    chunks = output.take()

    head = [chunk for chunk in chunks if chunk.position < HEAD_BYTES]
    tail = [chunk for chunk in chunks if chunk.position >= HEAD_BYTES]
    assert joined(head) == data[:HEAD_BYTES]
    assert joined(tail)[-TAIL_BYTES:] == data[-TAIL_BYTES:]
    assert len(joined(tail)) < TAIL_BYTES + CHUNK_BYTES
    assert tail[0].position <= output.cut_before < tail[0].end
    assert tail[-1].end == output.total == len(data)


def test_nothing_is_cut_up_to_head_and_tail_together() -> None:
    data = os.urandom(HEAD_BYTES + TAIL_BYTES)
    output = BoundedOutput()
    output.write(STDERR, data)

    assert joined(output.take()) == data


def test_chunks_never_cross_the_end_of_the_head() -> None:
    output = BoundedOutput()
    output.write(STDOUT, b"x" * (HEAD_BYTES - 10))
    output.write(STDOUT, b"y" * 20)

    assert HEAD_BYTES in [chunk.position for chunk in output.take()]


def test_single_bytes_do_not_cost_a_chunk_each() -> None:
    output = BoundedOutput()
    for _ in range(HEAD_BYTES + 10_000):
        output.write(STDOUT, b"x")

    assert len(output._fresh_head) + len(output._fresh_tail) < 1.1 * output.total / JOIN_BYTES
    assert joined(output.take()) == b"x" * output.total


def test_restored_chunks_come_first_at_the_next_take() -> None:
    output = BoundedOutput()
    output.write(STDOUT, b"a" * (HEAD_BYTES + 100))
    taken = output.take()
    output.write(STDOUT, b"b")

    output.restore(taken)

    assert joined(output.take()) == b"a" * (HEAD_BYTES + 100) + b"b"


def test_restored_chunks_that_were_cut_meanwhile_fall_away() -> None:
    output = BoundedOutput()
    output.write(STDOUT, b"h" * HEAD_BYTES + b"old")
    taken = output.take()
    output.write(STDOUT, b"n" * TAIL_BYTES)

    output.restore(taken)

    assert joined(output.take()) == b"h" * HEAD_BYTES + b"n" * TAIL_BYTES


def test_join_keeps_gaps_and_streams_apart() -> None:
    chunks = [Chunk(0, STDOUT, b"ab"), Chunk(2, STDOUT, b"c"), Chunk(3, STDERR, b"d"), Chunk(9, STDERR, b"e")]

    assert join(chunks) == [Chunk(0, STDOUT, b"abc"), Chunk(3, STDERR, b"d"), Chunk(9, STDERR, b"e")]


def test_only_chunks_wholly_between_head_and_tail_are_cut_away() -> None:
    total = HEAD_BYTES + TAIL_BYTES + 1000

    assert not is_cut_away(0, HEAD_BYTES, total)
    assert is_cut_away(HEAD_BYTES, HEAD_BYTES + 1000, total)
    assert not is_cut_away(HEAD_BYTES, HEAD_BYTES + 1001, total)


@pytest.mark.parametrize(
    ("written", "text", "is_cut"),
    [
        pytest.param(b"", "", False, id="nothing"),
        pytest.param(b"a" * EXCERPT_BYTES, "a" * EXCERPT_BYTES, False, id="all that fits"),
        pytest.param(b"a" * (EXCERPT_BYTES + 1), "a" * EXCERPT_BYTES, True, id="one byte too many"),
        pytest.param(b"a\0b", "a\ufffdb", False, id="NUL"),
        pytest.param("é".encode()[:1], "\ufffd", False, id="half a character at the end"),
        pytest.param(
            b"a" * (EXCERPT_BYTES - 1) + "é".encode(), "a" * (EXCERPT_BYTES - 1), True, id="a character cut in two"
        ),
        pytest.param(b"\xff" * 3000, "\ufffd" * (EXCERPT_BYTES // 3), True, id="no text, which grows"),
    ],
)
def test_the_beginning_is_text_of_at_most_8_kb_and_says_whether_there_is_more(
    written: bytes, text: str, is_cut: bool
) -> None:
    output = BoundedOutput()
    output.write(STDOUT, written)

    assert output.beginning() == (text, is_cut)
    assert len(text.encode()) <= EXCERPT_BYTES
