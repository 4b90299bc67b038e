"""Fuzz the readers of layers: mutate archives for some minutes, and see that nothing but the errors
meant for users comes out, that memory and time stay bounded, and that both makers of layers agree.

    python bench/fuzz_tar.py [--seconds 120] [--seed N] [--keep DIRECTORY]

The corpus is made here: a few small archives with every feature once. A finding is written to
DIRECTORY and ends the run with exit status 1. Run it with src and tests on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from security import rawtar
from security.rawtar import archive, directory, gnu_long, hardlink, member, pax, symlink
from tare.errors import TareError
from tare.image import erofs, extract, tar
from tare.image.compress import open_decompressed
from tare.image.entry import Limits
from tare.image.whiteout import LayerSummary

LIMITS = Limits(files=500, metadata=4 << 20, total=8 << 20, header=1 << 16)
SLOW = 5.0  # seconds that no small input may take


def corpus() -> list[bytes]:
    """Small archives with every feature once."""
    return [
        archive(
            directory(b"./"),
            directory(b"d/"),
            member(b"d/f", b"x" * 700),
            hardlink(b"h", b"d/f"),
            symlink(b"s", b"d/f"),
            rawtar.header(b"c", type_=b"3", device=(1, 3)),
            rawtar.header(b"p", type_=b"6"),
        ),
        archive(
            pax((b"path", b"long/" * 30 + b"f"), (b"mtime", b"1.5"), (b"uid", b"70000")),
            member(b"f", b"abc"),
            pax((b"SCHILY.xattr.user.a", b"v"), (b"LIBARCHIVE.xattr.user.b", b"AAEC")),
            member(b"g"),
            pax((b"mtime", b"7"), type_=b"g"),
            gnu_long(b"n" * 130),
            gnu_long(b"t" * 130, link=True),
            symlink(b"x", b"y"),
        ),
        archive(
            pax((b"GNU.sparse.map", b"0,512,4096,3"), (b"GNU.sparse.size", b"9000")),
            member(b"s1", b"y" * 515),
            pax(
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"s2"),
                (b"GNU.sparse.realsize", b"5000"),
            ),
            member(b"x", b"1\n4096\n3\n".ljust(512, b"\0") + b"abc"),
            pax(
                (b"GNU.sparse.size", b"600"),
                (b"GNU.sparse.numblocks", b"1"),
                (b"GNU.sparse.offset", b"0"),
                (b"GNU.sparse.numbytes", b"4"),
            ),
            member(b"s3", b"abcd"),
            rawtar.header(
                b"s4",
                type_=b"S",
                size=512,
                magic=b"ustar  \0",
                patch={386: b"%011o\0%011o\0" % (0, 512), 483: b"%011o\0" % 4096},
            )
            + bytes(512),
        ),
        archive(
            member(b"a/.wh.b"),
            member(b"a/.wh..wh..opq"),
            member(b".wh.c"),
            directory(b"c"),
            member(b"c/d"),
            symlink(b"e", b"/"),
            member(b"e", b"1"),
        ),
    ]


def mutate(source: random.Random, seeds: list[bytes]) -> bytes:
    """One archive with a few things wrong; checksums are made right most of the time."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randint(1, 8)):
        position = source.randrange(max(1, len(data)))
        block = position - position % 512
        match source.randrange(8):
            case 0:
                data[position : position + 1] = bytes([source.randrange(256)])
            case 1:
                data[position : position + 1] = source.choice(
                    [b"\0", b"\xff", b"/", b".", b"0", b"7", b"-", b"\n", b"=", b"\x80"]
                )
            case 2:  # a number field
                offset, width = source.choice([(100, 8), (108, 8), (124, 12), (136, 12), (329, 8)])
                number = source.choice(
                    [b"7" * width, b"\xff" * width, b"\x80" + b"\0" * (width - 2) + b"\x09", b"-1"]
                )
                data[block + offset : block + offset + len(number)] = number
            case 3:  # the type
                data[block + 156 : block + 157] = source.choice(
                    [bytes([c]) for c in b"01234567SLKxgXVMDN\0"]
                )
            case 4:  # a name
                name = source.choice(
                    [b"../x", b"/", b".", b"", b".wh.x", b".wh..", b".wh..wh..opq", b"a/b", b"d/f"]
                )
                data[block : block + 100] = name.ljust(100, b"\0")
            case 5:  # blocks move
                other = source.randrange(max(1, len(data))) // 512 * 512
                data[block:block] = data[other : other + 512 * source.randint(1, 4)]
            case 6:
                del data[block : block + 512 * source.randint(1, 3)]
            case _:
                donor = source.choice(seeds)
                cut = source.randrange(len(donor)) // 512 * 512
                data[block:] = donor[cut:]
    if source.random() < 0.95:
        repair(data)
    if source.random() < 0.1:
        del data[source.randrange(max(1, len(data))) :]
    return bytes(data)


def repair(data: bytearray) -> None:
    """Right checksums for all that looks like a header."""
    for block in range(0, len(data) - 511, 512):
        if data[block + 257 : block + 262] == b"ustar":
            total = sum(data[block : block + 512]) - sum(data[block + 148 : block + 156]) + 256
            data[block + 148 : block + 156] = b"%06o\0 " % total


def outcome_of_erofs(data: bytes) -> LayerSummary | str:
    """What the EROFS writer makes of it, or the error."""
    out = io.BytesIO()
    try:
        entries = tar.read(io.BytesIO(data), limits=LIMITS)
        return erofs.convert(entries, out, limits=LIMITS, devices=False)
    except TareError as error:
        assert str(error).isprintable(), "the message could act on a terminal"
        return str(error)


def outcome_of_extract(data: bytes, base: Path) -> LayerSummary | str:
    """What the extractor makes of it, or the error; nothing may appear beside its directory."""
    inside = base / "inside"
    inside.mkdir()
    root = os.open(inside, os.O_RDONLY)
    try:
        entries = tar.read(io.BytesIO(data), limits=LIMITS)
        return extract.extract(entries, root, rules=extract.Rules(devices=False), limits=LIMITS)
    except TareError as error:
        return str(error)
    finally:
        os.close(root)
        os.chmod(inside, 0o700)
        assert os.listdir(base) == ["inside"], "something appeared outside"
        shutil.rmtree(inside)


def try_one(data: bytes, base: Path, source: random.Random) -> None:
    """Feed one input to every reader; anything but a TareError escapes."""
    first = outcome_of_erofs(data)
    assert repr(first) == repr(outcome_of_erofs(data)), "not deterministic"
    second = outcome_of_extract(data, base)
    # Hosts refuse some times and attributes that EROFS can hold, so only this way round.
    if isinstance(first, str):
        assert isinstance(second, str), f"extracted, but EROFS refused: {first}"
    packed = bytearray(gzip.compress(data, 1))
    if source.random() < 0.5:
        packed[source.randrange(len(packed))] ^= 1 << source.randrange(8)
    try:
        with open_decompressed(io.BytesIO(bytes(packed)), limits=LIMITS) as reader:
            for _, content in tar.read(reader, limits=LIMITS):
                content.read(10)
    except TareError:
        pass


def main() -> int:
    """Run until the time is over or something is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=Path())
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    source, seeds = random.Random(seed), corpus()
    end, count = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory(prefix="tare-fuzz-") as directory_:
        while time.monotonic() < end:
            data = mutate(source, seeds)
            started = time.monotonic()
            try:
                try_one(data, Path(directory_), source)
                assert time.monotonic() - started < SLOW, "too slow"
            except Exception:
                name = options.keep / f"finding-{hashlib.sha256(data).hexdigest()[:12]}.tar"
                name.write_bytes(data)
                traceback.print_exc()
                print(f"seed {seed}, input {count}, kept as {name}", file=sys.stderr)
                return 1
            count += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{count} inputs, seed {seed}, nothing found, {peak} MiB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
