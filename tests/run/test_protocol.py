"""Messages and descriptors between daemon and keeper."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tare.run.protocol import MAXIMUM, Message, Receiver, Sender


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    with left, right:
        yield left, right


def test_messages_and_their_descriptors_arrive_in_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = Sender(ends[0]), Receiver(ends[1])
    first, second = os.pipe()
    sender.send({"n": 1}, [second])
    sender.send({"n": 2}, [])
    sender.send({"n": 3}, [first, second])
    os.close(first)
    os.close(second)

    messages: list[tuple[Message, list[int]]] = []
    while len(messages) < 3:
        messages += receiver.receive()

    assert [(m["n"], len(fds)) for m, fds in messages] == [(1, 1), (2, 0), (3, 2)]
    os.write(messages[0][1][0], b"x")
    assert os.read(messages[2][1][0], 1) == b"x"
    for _, fds in messages:
        for fd in fds:
            assert not os.get_inheritable(fd)
            os.close(fd)


def test_a_large_message_waits_until_the_peer_reads(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = Sender(ends[0]), Receiver(ends[1])
    text = "x" * (2 << 20)
    sender.send({"text": text}, [])
    assert sender.waiting

    messages: list[tuple[Message, list[int]]] = []
    while not messages:
        messages = receiver.receive()
        sender.flush()

    assert messages[0][0]["text"] == text


def test_a_message_that_is_too_long_ends_the_connection(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[0].send((MAXIMUM + 1).to_bytes(4, "little"))

    with pytest.raises(EOFError):
        Receiver(ends[1]).receive()


def test_the_end_of_the_peer_is_seen(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()

    with pytest.raises(EOFError):
        Receiver(ends[1]).receive()
