"""Frames survive any cut, and a guest that lies is caught."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.vm import protocol
from tare.vm.protocol import Decoder, ProtocolError, ToHost, Windows

_FRAMES = st.lists(
    st.tuples(
        st.sampled_from(list(ToHost)),
        st.integers(0, 2),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=300),
    ),
    max_size=8,
)


@given(_FRAMES, st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[ToHost, int, int, bytes]], step: int
) -> None:
    stream = b"".join(
        protocol.frame(kind, payload, channel=channel, stream=number)
        for kind, number, channel, payload in frames
    )
    decoder, found = Decoder(ToHost), []
    for start in range(0, len(stream), step):
        found += decoder.feed(stream[start : start + step])

    assert found == frames


@pytest.mark.attack("A50")
@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<IBBHI", protocol.MAXIMUM + 1, ToHost.OUTPUT, 1, 0, 0),
        struct.pack("<IBBHI", 0xFFFFFFFF, ToHost.OUTPUT, 1, 0, 0),
        struct.pack("<IBBHI", 4, 0, 0, 0, 0),
        struct.pack("<IBBHI", 4, 99, 0, 0, 0),
        struct.pack("<IBBHI", 4, ToHost.OUTPUT, 1, 1, 0),
    ],
    ids=["too long", "far too long", "type 0", "unknown type", "reserved bits"],
)
def test_a_header_that_cannot_be_is_refused_before_its_payload_is_waited_for(
    header: bytes,
) -> None:
    with pytest.raises(ProtocolError):
        Decoder(ToHost).feed(header)


@pytest.mark.attack("A50")
@given(st.binary(max_size=4000))
def test_noise_is_refused_or_waited_for_but_never_kept_beyond_a_frame(noise: bytes) -> None:
    decoder = Decoder(ToHost)
    try:
        for one in decoder.feed(noise):
            assert len(one.payload) <= protocol.MAXIMUM
    except ProtocolError:
        return


@pytest.mark.attack("A50")
def test_output_beyond_what_was_granted_is_refused() -> None:
    windows = Windows()
    windows.take(1, protocol.WINDOW)
    with pytest.raises(ProtocolError, match="more than was granted"):
        windows.take(1, 1)
    windows.grant(1, 10)
    windows.take(1, 10)

    with pytest.raises(ProtocolError):
        windows.take(3, 1)


@pytest.mark.attack("A50")
@pytest.mark.parametrize("payload", [b"", b"\1", b"12345"])
def test_a_number_of_another_size_is_refused(payload: bytes) -> None:
    (one,) = Decoder(ToHost).feed(protocol.frame(ToHost.EXITED, payload))

    with pytest.raises(ProtocolError):
        one.number()
