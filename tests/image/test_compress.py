"""Compression: told by magic, undone in pieces, bombs and damage refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import threading
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import InvalidError, UnsupportedError
from tare.image import compress
from tare.image.compress import Compression, compressor, open_decompressed
from tare.image.tar import Limits

TEXT = b"".join(b"line %d\n" % n for n in range(40_000))
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
}


class Slow:
    """Gives *n* bytes at a time."""

    def __init__(self, data: bytes, n: int) -> None:
        self._stream, self._n = io.BytesIO(data), n

    def read(self, n: int, /) -> bytes:
        return self._stream.read(min(n, self._n))


@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_it_gives_back_what_went_in(form: str, read_ahead: bool) -> None:
    packed = FORMS[form](TEXT)

    with open_decompressed(io.BytesIO(packed), digest=True, read_ahead=read_ahead) as reader:
        content = reader.read()

    assert content == TEXT
    assert reader.compression == form
    assert reader.digest == hashlib.sha256(TEXT).hexdigest()
    assert (reader.compressed, reader.size) == (len(packed), len(TEXT))


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_streams_that_trickle_and_buffers_of_any_size(form: str, step: int) -> None:
    packed = FORMS[form](TEXT[:20_000])
    reader = open_decompressed(Slow(packed, step))
    buffer = bytearray(777)

    parts = [reader.read(10)]
    while count := reader.readinto(buffer):
        parts.append(bytes(buffer[:count]))

    assert b"".join(parts) == TEXT[:20_000]


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_members_follow_each_other_and_zeros_may_pad_the_end(form: str) -> None:
    pack = FORMS[form]
    packed = pack(b"one ") + pack(b"") + pack(b"two") + bytes(1000 if form == "gzip" else 0)

    assert open_decompressed(io.BytesIO(packed)).read() == b"one two"


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_truncated_and_trailed_streams_are_refused(form: str) -> None:
    packed = FORMS[form](TEXT)

    with pytest.raises(InvalidError, match="truncated"):
        open_decompressed(io.BytesIO(packed[:-5])).read()
    with pytest.raises(InvalidError, match=r"followed by something else|corrupt"):
        open_decompressed(io.BytesIO(packed + b"garbage")).read()


@pytest.mark.parametrize("form", ["gzip", "zstd"])
@given(source=st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_damage_is_refused_and_never_gives_other_content(form: str, source: random.Random) -> None:
    packed = bytearray(compressed_with_checksum(form))
    packed[source.randrange(4, len(packed))] ^= 1 << source.randrange(8)

    try:
        content = open_decompressed(io.BytesIO(bytes(packed))).read()
    except (InvalidError, UnsupportedError):
        return
    assert content == TEXT  # a bit that means nothing, as in gzip's time


def compressed_with_checksum(form: str) -> bytes:
    if form == "gzip":
        return gzip.compress(TEXT)
    return zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})


@pytest.mark.parametrize(
    ("head", "name"), [(b"\xfd7zXZ\0", "xz"), (b"BZh91AY", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")]
)
def test_other_compressions_are_named(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name) as caught:
        open_decompressed(io.BytesIO(head + bytes(100)))
    assert name in caught.value.hint


def test_an_empty_stream_is_empty() -> None:
    assert open_decompressed(io.BytesIO(b"")).read() == b""


@pytest.mark.attack("A29")
@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_is_stopped_early_and_in_little_memory(form: str) -> None:
    packed = bomb(form, 1 << 30)
    tracemalloc.start()
    try:
        reader = open_decompressed(io.BytesIO(packed))
        with pytest.raises(InvalidError, match="bomb"):
            while reader.readinto(bytearray(1 << 20)):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert reader.size < 80 << 20
    assert peak < 16 << 20


def test_a_ratio_of_none_lets_it_through() -> None:
    reader = open_decompressed(io.BytesIO(bomb("zstd", 100 << 20)), limits=Limits(ratio=None))
    total = 0
    while count := reader.readinto(bytearray(1 << 20)):
        total += count

    assert total == 100 << 20


def bomb(form: str, size: int) -> bytes:
    zeros = bytes(1 << 20)
    out: list[bytes] = []
    packer = zlib.compressobj(9, wbits=31) if form == "gzip" else zstd.ZstdCompressor()
    for _ in range(size >> 20):
        out.append(packer.compress(zeros))
    return b"".join(out) + packer.flush()


@pytest.mark.attack("A29")
def test_a_zstd_window_of_gigabytes_is_refused() -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 29,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(TEXT) + packer.flush()

    with pytest.raises(InvalidError, match=r"corrupt|memory|window"):
        open_decompressed(io.BytesIO(packed)).read()


@pytest.mark.attack("A29")
def test_many_tiny_members_cost_no_square() -> None:
    packed = gzip.compress(b"") * 100_000

    assert open_decompressed(io.BytesIO(packed)).read() == b""  # a minute, if it were a square


def test_close_stops_the_thread_in_the_middle() -> None:
    before = threading.active_count()
    data = gzip.compress(random.Random(1).randbytes(20 << 20), 1)

    with open_decompressed(io.BytesIO(data), read_ahead=True) as reader:
        reader.read(10)

    assert threading.active_count() == before


def test_an_error_of_the_source_reaches_the_reader() -> None:
    class Broken:
        def __init__(self) -> None:
            self._head = io.BytesIO(gzip.compress(random.Random(1).randbytes(600_000)))

        def read(self, n: int, /) -> bytes:
            data = self._head.read(n)
            if not data or self._head.tell() > 500_000:
                raise OSError(5, "Input/output error")
            return data

    with (
        open_decompressed(Broken(), read_ahead=True) as reader,
        pytest.raises(OSError, match="Input/output"),
    ):
        reader.read()


@pytest.mark.parametrize("form", list(Compression))
def test_compressed_streams_are_read_by_others_and_are_the_same_each_time(
    form: Compression,
) -> None:
    def packed() -> bytes:
        out = io.BytesIO()
        with compressor(form, out) as sink:
            for start in range(0, len(TEXT), 1000):
                assert sink.write(TEXT[start : start + 1000]) > 0
        return out.getvalue()

    undo: dict[str, Callable[[bytes], bytes]] = {
        "plain": bytes,
        "gzip": gzip.decompress,
        "zstd": zstd.decompress,
    }
    assert undo[form](packed()) == TEXT
    assert packed() == packed()


def test_zlib_stands_in_where_isal_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "_deflate", zlib)
    packed = gzip.compress(TEXT) + gzip.compress(TEXT)

    assert open_decompressed(io.BytesIO(packed)).read() == TEXT + TEXT
    with pytest.raises(InvalidError, match="corrupt"):
        open_decompressed(io.BytesIO(packed[:50] + b"\xff" * 50 + packed[100:])).read()
