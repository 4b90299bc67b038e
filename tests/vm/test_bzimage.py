"""The kernel inside a bzImage is found and unpacked, and what is none is refused."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import UnsupportedError
from tare.vm import bzimage

_ELF = b"\x7fELF" + bytes(range(256)) * 40


def _block(data: bytes) -> bytes:
    """LZ4 of *data*: literals, and a match wherever the last 4 bytes were seen before."""
    out, literals, at = bytearray(), bytearray(), 0
    seen: dict[bytes, int] = {}
    while at < len(data):
        key = data[at : at + 4]
        back = seen.get(key)
        length = 0
        if back is not None and len(key) == 4 and at - back < 65536:
            while at + length < len(data) - 5 and data[back + length] == data[at + length]:
                length += 1
        if length >= 4 and back is not None:
            out += _sequence(literals, at - back, length)
            literals.clear()
            at += length
        else:
            seen[key] = at
            literals.append(data[at])
            at += 1
    return bytes(out + _sequence(literals, 0, 0))


def _sequence(literals: bytes | bytearray, back: int, length: int) -> bytes:
    match = max(length - 4, 0)
    out = bytearray([min(len(literals), 15) << 4 | min(match, 15)])
    out += _more(len(literals)) + literals
    if length:
        out += struct.pack("<H", back) + _more(match)
    return bytes(out)


def _more(length: int) -> bytes:
    if length < 15:
        return b""
    full, rest = divmod(length - 15, 255)
    return b"\xff" * full + bytes([rest])


def _lz4(data: bytes) -> bytes:
    block = _block(data)
    return (
        b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + struct.pack("<I", len(data))
    )


def _image(payload: bytes, sectors: int = 3) -> bytes:
    header = bytearray((sectors + 1) * 512)
    header[0x1F1] = sectors
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 64, len(payload))
    return bytes(header) + bytes(64) + payload + bytes(4096)


@pytest.mark.parametrize(
    "pack",
    [_lz4, bz2.compress, lzma.compress, lambda data: zlib.compress(data, wbits=31)],
    ids=["lz4", "bzip2", "xz", "gzip"],
)
def test_the_elf_file_is_unpacked_from_each_packing(pack: Callable[[bytes], bytes]) -> None:
    assert bzimage.vmlinux(_image(pack(_ELF))) == _ELF


@given(st.lists(st.binary(max_size=40), max_size=60).map(b"".join), st.integers(1, 9))
def test_lz4_gives_back_what_was_packed(data: bytes, times: int) -> None:
    assert bzimage.lz4_block(_block(data * times)) == data * times


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (bytes(8192), "not a bzImage"),
        (b"MZ", "not a bzImage"),
        (_image(b"zzzz" + bytes(100)), "packed in a way"),
        (_image(_lz4(b"not a kernel" * 20)), "no ELF file"),
        (_image(b"\x02\x21\x4c\x18" + struct.pack("<I", 1 << 30) + bytes(64)), "cut short"),
    ],
)
def test_what_is_no_kernel_is_refused_in_words(image: bytes, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        bzimage.vmlinux(image)


@given(st.binary(max_size=200))
def test_damaged_lz4_is_refused_and_never_runs_away(data: bytes) -> None:
    try:
        out = bzimage.lz4_block(data)
    except UnsupportedError:
        return

    assert len(out) <= 8 << 20
