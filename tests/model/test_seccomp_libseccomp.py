"""The compiler beside libseccomp, which runc and crun use: the same answer to the same file.

libseccomp is driven as runc does it (a rule for each name, rules with the default action left
out) and its program is run by the same interpreter as ours. It differs, on purpose, in:

* numbers that it or the profile does not know (ours answer ENOSYS, as runc's own stub does);
* the high half of arguments that are ints (it can be got round, ours not);
* socketcall and ipc on i386, which it opens along with the calls that they stand for.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from fakes import bpf
from fakes.seccomp_oracle import ARCH
from tare.model import syscalls
from tare.model.seccomp import Op, Profile, parse_profile, render_profile
from tare.model.seccomp_filter import Container, compile_filter, is_narrow
from tare.model.seccomp_profiles import docker_compat_profile, hardened_profile, standard_profile

KERNEL = (6, 18)
_OPS = {op: number for number, op in enumerate(Op, start=1)}
_TOKENS = {"x86_64": ARCH["x86_64"], "i386": ARCH["i386"], "x32": 0x4000_003E}
_MULTIPLEXED = {"socketcall", "ipc"}


class _Argument(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        pytest.skip("libseccomp: not installed")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Argument),
    )
    return library


def theirs(profile: Profile, caps: frozenset[str]) -> tuple[bpf.Code, set[str]]:
    """The program that libseccomp makes, and the names that it knows."""
    library = _library()
    context = library.seccomp_init(profile.default)
    assert context
    known = set()
    try:
        for abi in profile.sub_abis("x86_64"):
            assert library.seccomp_arch_add(context, _TOKENS[abi]) == 0
        container = Container(caps, KERNEL, "x86_64")
        for rule in profile.rules:
            for name in rule.names:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number == -1:
                    continue
                known.add(name)
                if rule.verdict == profile.default or not container.wants(rule):
                    continue
                array = (_Argument * 6)(
                    *[_Argument(c.index, _OPS[c.op], c.value, c.value_two) for c in rule.args]
                )
                done = library.seccomp_rule_add_array(
                    context, rule.verdict, number, len(rule.args), array
                )
                assert done == 0, (name, done)
        with tempfile.TemporaryFile() as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
            file.seek(0)
            return bpf.load(file.read()), known
    finally:
        library.seccomp_release(context)


def cases() -> Iterator[tuple[str, Profile, frozenset[str]]]:
    admin = frozenset({"SYS_ADMIN", "SYS_CHROOT", "AUDIT_WRITE"})
    ours = (standard_profile, hardened_profile, docker_compat_profile)
    for make, caps in product(ours, (frozenset(), admin)):
        yield f"{make.__name__}-{len(caps)}", parse_profile(render_profile(make())), caps
    yield (
        "families",
        standard_profile(allow_abi_ia32=True, socket_families=("can", "bluetooth")),
        frozenset(),
    )
    file = Path(__file__).parent.parent / "data" / "seccomp-default.jsonl.gz"
    for line in gzip.decompress(file.read_bytes()).splitlines()[:3]:
        row = json.loads(line)
        caps = frozenset(cap.removeprefix("CAP_") for cap in row["q"]["caps"])
        yield f"docker-{len(caps)}", parse_profile(json.dumps(row["want"]["ok"])), caps
    yield "operators", operators(), frozenset()


def operators() -> Profile:
    """Every operator on arguments of 64 bits, with constants on both halves."""
    bounds = {
        "mmap": ("NE", 2**32 + 5),
        "mprotect": ("LT", 2**32 + 5),
        "munmap": ("LE", 2**32 + 5),
        "brk": ("EQ", 2**32 + 5),
        "mremap": ("GE", 2**32 + 5),
        "msync": ("GT", 2**32 + 5),
        "mincore": ("LT", 5),
        "lseek": ("GT", 5),
    }
    rules: list[dict[str, object]] = [
        {
            "names": [name],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, "op": f"SCMP_CMP_{op}", "value": value}],
        }
        for name, (op, value) in bounds.items()
    ]
    masked = {"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 0x7_0000_0007, "valueTwo": 2**32 + 5}
    plain = {"index": 0, "op": "SCMP_CMP_LE", "value": 1}
    rules.append({"names": ["mlock"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": [masked]})
    rules.append({"names": ["write"], "action": "SCMP_ACT_LOG", "args": [plain, masked]})
    rules.append({"names": ["read", "cachestat"], "action": "SCMP_ACT_KILL_PROCESS"})
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
        "syscalls": rules,
    }
    return parse_profile(json.dumps(document))


EDGES = (
    *(0, 1, 2, 4, 5, 6, 8, 16, 17, 29, 31, 38, 39, 40, 41),
    *(0x5411, 0x5412, 0x5413, 0x541C, 0x541D),
    *(0x20000, 0x20008, 0x10000011, 0x7D0F00, 2**32 - 1),
)
WIDE = (2**32, 2**32 + 4, 2**32 + 5, 2**32 + 6, 2**33 + 5, 2**33 + 6, 2**64 - 1)
ARGUMENTS = [
    *((value, value, 9) for value in EDGES),
    *((value, value, 0) for value in (*EDGES, *WIDE)),
]


@pytest.mark.parametrize(
    ("profile", "caps"), [case[1:] for case in cases()], ids=[case[0] for case in cases()]
)
def test_libseccomp_makes_a_filter_with_the_same_answers(
    profile: Profile, caps: frozenset[str]
) -> None:
    their_code, known = theirs(profile, caps)
    our_code = bpf.load(compile_filter(profile, capabilities=caps, kernel=KERNEL, machine="x86_64"))
    compared = 0

    for abi in ("x86_64", *(sub for sub in profile.sub_abis("x86_64") if sub != "x32")):
        for name in known - _MULTIPLEXED:
            number = syscalls.numbers(abi).get(name)
            if number is None:
                continue
            for args in ARGUMENTS:
                high = any(arg >> 32 for arg in args)
                if high and (abi == "i386" or any(is_narrow(abi, name, i) for i in range(3))):
                    continue
                mine = bpf.run(our_code, ARCH[abi], number, args)
                assert mine == bpf.run(their_code, ARCH[abi], number, args), (abi, name, args)
                compared += 1
    assert compared > 100
