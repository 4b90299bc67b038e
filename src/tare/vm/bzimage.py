"""The uncompressed kernel inside a bzImage: a machine without firmware boots it in half the time.

Pure. Documentation/x86/boot.rst of Linux says where the payload lies; Debian's cloud kernel packs
it as LZ4's legacy frames. Other packings have decoders in the standard library.

Not for: checking who made the kernel (apt does).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from typing import Final

from tare.errors import UnsupportedError

_SETUP_SECTORS: Final = 0x1F1
_MAGIC: Final = 0x202
_PAYLOAD: Final = 0x248
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
_LZ4_BLOCK: Final = 8 << 20
_MOST: Final = 256 << 20


def vmlinux(image: bytes) -> bytes:
    """The ELF file inside *image*; UnsupportedError when it is no bzImage that this can unpack."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS" or len(image) < 4096:
        raise UnsupportedError("the kernel is not a bzImage")
    sectors = image[_SETUP_SECTORS] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    found = _unpack(payload)
    if found[:4] != b"\x7fELF":
        raise UnsupportedError("there is no ELF file inside the kernel image")
    return found


def _unpack(payload: bytes) -> bytes:
    if payload[:4] == _LZ4_LEGACY:
        return lz4_legacy(payload)
    if payload[:2] == b"\x1f\x8b":
        return zlib.decompressobj(31).decompress(payload, _MOST)
    if payload[:3] == b"BZh":
        return bz2.BZ2Decompressor().decompress(payload, _MOST)
    if payload[:6] == b"\xfd7zXZ\x00":
        return lzma.LZMADecompressor().decompress(payload, _MOST)
    raise UnsupportedError(f"the kernel is packed in a way not known here ({payload[:4].hex()})")


def lz4_legacy(data: bytes) -> bytes:
    """Unpack LZ4's legacy format, lz4_Frame_format.md "Legacy frame"; the kernel's form of it."""
    at, out = 4, bytearray()
    # Four bytes at the end are the kernel's own: the size of the whole.
    while at + 4 <= len(data) - 4:
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size == int.from_bytes(_LZ4_LEGACY, "little"):
            continue  # the next of several frames
        if at + size > len(data):
            raise UnsupportedError("the kernel's LZ4 payload is cut short")
        out += lz4_block(data[at : at + size])
        at += size
        if len(out) > _MOST:
            raise UnsupportedError("the kernel is larger than 256 MiB")
    return bytes(out)


def lz4_block(block: bytes) -> bytes:
    """Unpack one LZ4 block, lz4_Block_format.md; UnsupportedError when it is not one."""
    out = bytearray()
    at, end = 0, len(block)
    try:
        while at < end:
            token = block[at]
            at += 1
            length = token >> 4
            if length == 15:
                at, length = _more(block, at, length)
            out += block[at : at + length]
            at += length
            if at >= end:
                break
            back = block[at] | block[at + 1] << 8
            at += 2
            length = token & 15
            if length == 15:
                at, length = _more(block, at, length)
            length += 4
            start = len(out) - back
            if start < 0 or not back or len(out) + length > _LZ4_BLOCK:
                raise UnsupportedError("the kernel's LZ4 payload is damaged")
            if back >= length:
                out += out[start : start + length]
            else:
                piece = out[start:]
                out += (piece * (length // back + 1))[:length]
    except IndexError:
        raise UnsupportedError("the kernel's LZ4 payload is damaged") from None
    return bytes(out)


def _more(block: bytes, at: int, length: int) -> tuple[int, int]:
    while True:
        more = block[at]
        at += 1
        length += more
        if more != 255:
            return at, length
