"""A tap device: the end of a link that is a descriptor instead of another interface.

Not for: what it is linked to (`kernel.interfaces`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_NAME_SIZE: Final = 16


def create(name: str) -> int:
    """The descriptor of a new tap device *name* of this network namespace.

    The device is there as long as a copy of the descriptor is. Frames carry a virtio header, as
    QEMU wants them. OSError says what is missing: /dev/net/tun, privilege, or the name is taken.
    """
    encoded = os.fsencode(name)
    if not 0 < len(encoded) < _NAME_SIZE:
        raise OSError(errno.EINVAL, "invalid name of an interface", name)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", encoded, flags))
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, f"TUNSETIFF: {error.strerror}", name) from None
    return descriptor
