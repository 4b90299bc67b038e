"""The JSON form of seccomp profiles: OCI runtime-spec, with Docker's and podman's additions.

Not for: what a profile means (`seccomp`). Callers use `seccomp.parse_profile` and
`seccomp.render_profile`, which load this module only when a profile comes as a file.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.model.seccomp import ACTION_MASK, Comparison, Condition, Op, Profile, Ret, Rule

MAX_BYTES: Final = 1 << 20
MAX_RULES: Final = 4096
MAX_NAMES: Final = 20_000
MAX_COMPARISONS: Final = 32

_ACTIONS: Final = {
    "SCMP_ACT_KILL": Ret.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": Ret.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": Ret.KILL_PROCESS,
    "SCMP_ACT_TRAP": Ret.TRAP,
    "SCMP_ACT_ERRNO": Ret.ERRNO,
    "SCMP_ACT_TRACE": Ret.TRACE,
    "SCMP_ACT_LOG": Ret.LOG,
    "SCMP_ACT_ALLOW": Ret.ALLOW,
}
# The name that is written for a verdict: the last one that means it.
_ACTION_NAMES: Final = {int(ret): name for name, ret in _ACTIONS.items()}
_HAS_ERRNO: Final = (Ret.ERRNO, Ret.TRACE)
_MAX_ERRNO: Final = 4095

# libseccomp's architectures; tare has system call tables for the first five only.
_ABIS: Final = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_ARM": "arm",
} | {
    f"SCMP_ARCH_{name}": name.lower()
    for name in (
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "RISCV64",
        "LOONGARCH64",
        "M68K",
        "SH",
        "SHEB",
    )
}
_ABI_NAMES: Final = {abi: name for name, abi in _ABIS.items()}

_FLAGS: Final = frozenset(
    f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")
)
_KERNEL: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")
_CALL_NAME: Final = re.compile(r"[a-zA-Z0-9_]{1,64}")

_PROFILE_KEYS: Final = frozenset(
    [
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "architectures",
        "archMap",
        "syscalls",
        "flags",
        "comment",
        "listenerPath",
        "listenerMetadata",
    ]
)
_RULE_KEYS: Final = frozenset(
    ["name", "names", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"]
)
_ARGUMENT_KEYS: Final = frozenset(["index", "value", "valueTwo", "op"])
_CONDITION_KEYS: Final = frozenset(["caps", "arches", "minKernel"])
_ARCH_KEYS: Final = frozenset(["architecture", "subArchitectures"])


def _invalid(where: str, problem: str) -> InvalidError:
    return InvalidError(f"seccomp profile: {where} {problem}")


class _Object:
    """One JSON object: its members by key, each checked for its type as it is taken.

    ``null`` is the same as an absent member, as Go writes it.
    """

    __slots__ = ("_members", "where")

    def __init__(self, value: object, where: str, keys: frozenset[str]) -> None:
        if not isinstance(value, dict):
            raise _invalid(where, "is not an object")
        for key in value:
            if key not in keys:
                raise _invalid(where, f"has the unknown key {key[:40]!r}")
        self._members: Mapping[str, object] = value
        self.where = where

    def place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where != "the document" else key

    def has(self, key: str) -> bool:
        return self._members.get(key) is not None

    def text(self, key: str) -> str:
        value = self._members.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _invalid(self.place(key), "is not a string")
        return value

    def integer(self, key: str, top: int) -> int | None:
        """A whole number from 0 to *top*, or None where there is none."""
        value = self._members.get(key)
        if value is None:
            return None
        # bool is an int to Python and never one to JSON.
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= top:
            raise _invalid(self.place(key), f"is not a whole number from 0 to {top}")
        return value

    def items(self, key: str) -> list[object]:
        value = self._members.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _invalid(self.place(key), "is not a list")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        words: list[str] = []
        for word in self.items(key):
            if not isinstance(word, str):
                raise _invalid(self.place(key), "is not a list of strings")
            words.append(word)
        return tuple(words)

    def object(self, key: str, keys: frozenset[str]) -> _Object:
        value = self._members.get(key)
        return _Object({} if value is None else value, self.place(key), keys)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a key that comes twice: readers disagree on which one counts."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidError("seccomp profile: an object has the same key twice")
    return members


def _load(data: bytes | str) -> object:
    if len(data) > MAX_BYTES:
        raise InvalidError(f"seccomp profile: it is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise InvalidError("seccomp profile: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidError("seccomp profile: it is not UTF-8 text") from None
    except ValueError as error:
        raise InvalidError(f"seccomp profile: it is not valid JSON: {error}") from None


def _errno(source: _Object, number_key: str, name_key: str, verdict: int) -> int:
    """The errno that goes with *verdict*: EPERM unless one is given, as runc has it."""
    number = source.integer(number_key, _MAX_ERRNO)
    name = source.text(name_key)
    if name:
        named = next((value for value, word in errno.errorcode.items() if word == name), None)
        if named is None:
            raise _invalid(source.place(name_key), f"is no errno: {name[:40]!r}")
        if number is not None and number != named:
            raise _invalid(source.place(name_key), f"is {name} and {number_key} is {number}")
        number = named
    if verdict not in _HAS_ERRNO:
        if number is not None and not name:
            raise _invalid(source.place(number_key), "needs SCMP_ACT_ERRNO or SCMP_ACT_TRACE")
        return 0
    return errno.EPERM if number is None else number


def _verdict(source: _Object, key: str, number_key: str, name_key: str) -> int:
    word = source.text(key)
    if word == "SCMP_ACT_NOTIFY":
        raise UnsupportedError(
            f"seccomp profile: {source.place(key)} is SCMP_ACT_NOTIFY, which tare does not have",
            hint="Use SCMP_ACT_ERRNO, or SCMP_ACT_LOG to see what a program calls.",
        )
    if word not in _ACTIONS:
        problem = f"is no action: {word[:40]!r}" if word else "is missing"
        raise _invalid(source.place(key), problem)
    ret = _ACTIONS[word]
    return ret | _errno(source, number_key, name_key, ret)


def _abi(word: object, where: str) -> str:
    if not isinstance(word, str) or word not in _ABIS:
        raise _invalid(where, f"is no architecture: {str(word)[:40]!r}")
    return _ABIS[word]


def _arch_map(document: _Object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if document.has("architectures") and document.has("archMap"):
        raise _invalid("the document", "has both architectures and archMap")
    abis = [_abi(word, "architectures") for word in document.words("architectures")]
    if abis:
        return tuple((abi, tuple(other for other in abis if other != abi)) for abi in abis)
    result: list[tuple[str, tuple[str, ...]]] = []
    for position, item in enumerate(document.items("archMap")):
        entry = _Object(item, f"archMap[{position}]", _ARCH_KEYS)
        native = _abi(entry.text("architecture"), entry.place("architecture"))
        place = entry.place("subArchitectures")
        result.append(
            (native, tuple(_abi(word, place) for word in entry.words("subArchitectures")))
        )
    return tuple(result)


def _comparison(item: object, where: str) -> Comparison:
    source = _Object(item, where, _ARGUMENT_KEYS)
    index = source.integer("index", 5)
    if index is None:
        raise _invalid(source.place("index"), "is missing")
    op = source.text("op")
    if op not in list(Op):
        raise _invalid(source.place("op"), f"is no comparison: {op[:40]!r}")
    value = source.integer("value", 2**64 - 1) or 0
    value_two = source.integer("valueTwo", 2**64 - 1) or 0
    return Comparison(index, Op(op), value, value_two if op == Op.MASKED_EQ else 0)


def _condition(source: _Object) -> Condition:
    kernel = source.text("minKernel")
    match = _KERNEL.fullmatch(kernel)
    if kernel and match is None:
        raise _invalid(source.place("minKernel"), f"is no kernel version: {kernel[:40]!r}")
    return Condition(
        caps=frozenset(cap.upper().removeprefix("CAP_") for cap in source.words("caps")),
        arches=frozenset(source.words("arches")),
        min_kernel=(int(match[1]), int(match[2])) if match else None,
    )


def _names(source: _Object) -> tuple[str, ...]:
    if source.has("name") and source.has("names"):
        raise _invalid(source.where, "has both name and names")
    names = (source.text("name"),) if source.has("name") else source.words("names")
    for name in names:
        if not _CALL_NAME.fullmatch(name):
            raise _invalid(source.where, f"names no system call: {name[:40]!r}")
    if not names:
        raise _invalid(source.where, "names no system call")
    return names


def _rules(item: object, where: str) -> list[Rule]:
    """One entry of ``syscalls``: a rule, or one for each comparison.

    Where an entry compares the same argument twice, any of its comparisons is enough, not all of
    them together: so runc and crun read it, and so profiles are written.
    """
    source = _Object(item, where, _RULE_KEYS)
    args = tuple(
        _comparison(argument, f"{source.place('args')}[{position}]")
        for position, argument in enumerate(source.items("args"))
    )
    if len(args) > MAX_COMPARISONS:
        raise _invalid(source.place("args"), f"has more than {MAX_COMPARISONS} comparisons")
    source.text("comment")
    names = _names(source)
    verdict = _verdict(source, "action", "errnoRet", "errno")
    includes = _condition(source.object("includes", _CONDITION_KEYS))
    excludes = _condition(source.object("excludes", _CONDITION_KEYS))
    together = len({argument.index for argument in args}) == len(args)
    alternatives = [args] if together else [(argument,) for argument in args]
    return [Rule(names, verdict, each, includes, excludes) for each in alternatives]


def read(data: bytes | str) -> Profile:
    """See `seccomp.parse_profile`."""
    document = _Object(_load(data), "the document", _PROFILE_KEYS)
    default = _verdict(document, "defaultAction", "defaultErrnoRet", "defaultErrno")
    if document.text("listenerPath") or document.text("listenerMetadata"):
        raise UnsupportedError(
            "seccomp profile: it asks for a listener, and tare has no SCMP_ACT_NOTIFY",
            hint="Remove listenerPath and listenerMetadata.",
        )
    flags = document.words("flags")
    for flag in flags:
        if flag not in _FLAGS:
            raise _invalid("flags", f"has the unknown flag {flag[:60]!r}")
    rules: list[Rule] = []
    names = 0
    for position, item in enumerate(document.items("syscalls")):
        more = _rules(item, f"syscalls[{position}]")
        rules += more
        names += sum(len(rule.names) for rule in more)
        if len(rules) > MAX_RULES or names > MAX_NAMES:
            raise _invalid("syscalls", f"has over {MAX_RULES} rules or {MAX_NAMES} names")
    log = "SECCOMP_FILTER_FLAG_LOG" in flags
    return Profile(default, tuple(rules), _arch_map(document), log)


def _write_verdict(verdict: int, key: str, errno_key: str) -> dict[str, object]:
    action = verdict & ACTION_MASK
    result: dict[str, object] = {key: _ACTION_NAMES[action]}
    if action in _HAS_ERRNO:
        result[errno_key] = verdict & ~ACTION_MASK
    return result


def _write_condition(condition: Condition) -> dict[str, object]:
    result: dict[str, object] = {}
    if condition.caps:
        result["caps"] = [f"CAP_{cap}" for cap in sorted(condition.caps)]
    if condition.arches:
        result["arches"] = sorted(condition.arches)
    if condition.min_kernel:
        result["minKernel"] = "{}.{}".format(*condition.min_kernel)
    return result


def _write_comparison(comparison: Comparison) -> dict[str, object]:
    result: dict[str, object] = {
        "index": comparison.index,
        "value": comparison.value,
        "op": comparison.op.value,
    }
    if comparison.op is Op.MASKED_EQ:
        result["valueTwo"] = comparison.value_two
    return result


def _write_rule(rule: Rule) -> dict[str, object]:
    result: dict[str, object] = {"names": list(rule.names)}
    result |= _write_verdict(rule.verdict, "action", "errnoRet")
    if rule.args:
        result["args"] = [_write_comparison(argument) for argument in rule.args]
    for key, condition in (("includes", rule.includes), ("excludes", rule.excludes)):
        if members := _write_condition(condition):
            result[key] = members
    return result


def write(profile: Profile) -> str:
    """See `seccomp.render_profile`."""
    document = _write_verdict(profile.default, "defaultAction", "defaultErrnoRet")
    if profile.log:
        document["flags"] = ["SECCOMP_FILTER_FLAG_LOG"]
    document["archMap"] = [
        {"architecture": _ABI_NAMES[abi], "subArchitectures": [_ABI_NAMES[sub] for sub in subs]}
        for abi, subs in profile.arch_map
    ]
    document["syscalls"] = [_write_rule(rule) for rule in profile.rules]
    return json.dumps(document, indent=1)
