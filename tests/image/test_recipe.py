"""Recipes: an archive comes back bit for bit, however it was read, and damage is noticed."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import archives
from tare.errors import FailedError, InvalidError
from tare.image import erofs, tar
from tare.image.entry import Kind
from tare.image.recipe import Recorder, replay


class Dribble:
    """Gives *step* bytes at a time."""

    def __init__(self, content: bytes, step: int) -> None:
        self._content = io.BytesIO(content)
        self._step = step

    def read(self, n: int = -1, /) -> bytes:
        return self._content.read(min(n, self._step) if n >= 0 else self._step)


def recorded(content: bytes, step: int = 1 << 20) -> tuple[bytes, bytes]:
    """The EROFS file and the recipe of an archive, made as `layers` makes them."""
    out, recipe = io.BytesIO(), io.BytesIO()
    recorder = Recorder(Dribble(content, step), recipe)
    writer = erofs.ErofsWriter(out)
    for entry, data in tar.read(recorder):
        if entry.kind is Kind.FILE and entry.size and entry.sparse is None:
            recorder.data(data.offset, entry.size, writer.position)
        writer.add(entry, data)
    writer.finish()
    recorder.finish()
    assert recorder.size == len(content)
    return out.getvalue(), recipe.getvalue()


def replayed(file: bytes, recipe: bytes) -> bytes:
    with tempfile.TemporaryFile() as on_disk:
        on_disk.write(file)
        on_disk.flush()
        return b"".join(replay(io.BytesIO(recipe), on_disk.fileno()))


SIZES = st.sampled_from([0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000]) | st.integers(0, 9000)


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(st.tuples(st.sampled_from("abcdefg"), SIZES), max_size=12),
    trailing=st.binary(max_size=2000),
    step=st.sampled_from([7, 512, 4096, 1 << 20]),
)
def test_any_archive_comes_back(files: list[tuple[str, int]], trailing: bytes, step: int) -> None:
    members = [(f"d/{name}", os.urandom(size)) for name, size in files]
    content = archives.pack(members) + trailing

    file, recipe = recorded(content, step)

    assert replayed(file, recipe) == content


def test_files_larger_than_any_buffer_are_not_in_the_recipe() -> None:
    content = archives.pack([("big", os.urandom(11 << 20)), ("small", b"x")])

    file, recipe = recorded(content)

    assert replayed(file, recipe) == content
    assert len(recipe) < 2000


def test_what_follows_the_archive_is_kept_in_bounded_memory() -> None:
    content = archives.pack([("a", b"a" * 5000)]) + os.urandom(20 << 20)

    file, recipe = recorded(content)

    assert replayed(file, recipe) == content


def damaged(recipe: bytes) -> Iterator[bytes]:
    yield recipe[: len(recipe) // 2]
    yield recipe + recipe[:9]
    for place in range(4, len(recipe), max(len(recipe) // 40, 1)):
        yield recipe[:place] + bytes([recipe[place] ^ 0x55]) + recipe[place + 1 :]


@pytest.mark.attack("A30")
def test_a_damaged_recipe_is_an_error_or_gives_other_bytes() -> None:
    content = archives.pack([("a", os.urandom(9000)), ("b", os.urandom(300))])
    file, recipe = recorded(content)

    unnoticed = 0
    for broken in damaged(recipe):
        with contextlib.suppress(FailedError, InvalidError):
            unnoticed += replayed(file, broken) == content

    assert unnoticed <= 3, "but for bits that mean nothing to zstd"
