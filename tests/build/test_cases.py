"""The published build cases on a real engine: the files, the configuration or the refusal.

Expected is what the reference's classic builder makes of them. Where BuildKit means something
else, so do we; those cases are listed with the difference, and held to it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from build.conftest import Builds

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

_DATA: Final = Path(__file__).resolve().parents[1] / "data"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BASES: Final = ("mirror.gcr.io/busybox", "mirror.gcr.io/alpine", "quay.io/libpod/centos:7")
_KEPT: Final = (
    "Cmd", "Env", "Entrypoint", "User", "WorkingDir", "ExposedPorts", "Volumes", "Labels",
    "StopSignal", "OnBuild", "Healthcheck", "Shell",
)  # fmt: skip

# Case -> what is different, and what of it this test still looks at: the names of files.
DIFFERENT: Final = {
    "034": "what RUN writes below a VOLUME stays in the image, as with BuildKit",
    "043": "the set-id bits of a file in the context are kept, as with BuildKit",
    "055": "an exception of .dockerignore with a wildcard keeps a directory, as with BuildKit",
    "105": "the same",
    "106": "the same",
    "107": "the same",
    "108": "the same",
    "154": "the same",
    "155": "the same",
    "156": "a directory kept for what is in it has its own mode, as with BuildKit",
    "170": "RUN chown of a VOLUME stays in the image, as with BuildKit",
    "138": "an archive with an entry that has no name is refused",
}
# They fail for what the reference's host lacked, not for what they say.
FOREIGN: Final = {"000", "024", "030", "041"}


@cache
def expected() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(
        gzip.decompress((_DATA / "build-cases-expected.json.gz").read_bytes())
    )
    return found


def _base() -> dict[str, list[Any]]:
    """The files of the image that most cases start from."""
    files = expected()["002 copy file to root"]["fs"]
    return {path: row for path, row in files.items() if path != "a"}


@cache
def _alpine() -> dict[str, list[Any]]:
    """What all the cases have in common that start from another image."""
    every = [c["fs"] for c in expected().values() if "etc/alpine-release" in c.get("fs", {})]
    return {path: row for path, row in every[0].items() if all(fs.get(path) == row for fs in every)}


@cache
def sources() -> dict[str, dict[str, tuple[tarfile.TarInfo, bytes]]]:
    """Case -> its files."""
    found: dict[str, dict[str, tuple[tarfile.TarInfo, bytes]]] = {}
    with tarfile.open(_DATA / "build-cases.tar.gz") as archive:
        for entry in archive:
            parts = entry.name.removeprefix("./").split("/", 2)
            if len(parts) < 3 or not parts[1].isdigit():
                continue
            file = archive.extractfile(entry) if entry.isfile() else None
            content = file.read() if file is not None else b""
            found.setdefault(parts[1], {})[parts[2]] = (entry, content)
    return found


def context(number: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, (entry, content) in sorted(sources()[number].items()):
            if name == "Dockerfile.inline":
                entry.mtime = 1485449953
            elif not name.startswith("context/"):
                continue
            entry.name = name.removeprefix("context/")
            archive.addfile(entry, io.BytesIO(content) if entry.isfile() else None)
    return out.getvalue()


@pytest.fixture(scope="session")
def bases(build_engine: object) -> None:
    """Stand-ins for the images that the cases start from."""
    from harness.engines import Engine

    assert isinstance(build_engine, Engine)
    build_engine.out("version")
    made = [path for path, row in _base().items() if row[0] == "d"]
    dockerfile = (
        "FROM busybox AS source\nFROM scratch\n"
        f'ENV PATH={_PATH}\nCMD ["sh"]\n'
        "COPY --from=source /bin/ /bin/\nCOPY --from=source /etc/ /etc/\n"
        f"RUN mkdir -p {' '.join(f'/{path}' for path in made)} && chmod 1777 /tmp /var/tmp\n"
    )
    builds = Builds(build_engine)
    for name in _BASES:
        assert not builds.build({"Dockerfile": dockerfile}, t=name).error


def described(entry: tarfile.TarInfo, content: bytes) -> list[object]:
    kind = "d" if entry.isdir() else "l" if entry.issym() else "f"
    digest = hashlib.sha256(content).hexdigest()[:16] if kind == "f" else ""
    mode = "0o777" if kind == "l" else oct(entry.mode)
    size = len(content) if kind == "f" else 0
    return [kind, mode, entry.uid, entry.gid, size, entry.linkname if kind == "l" else "", digest]


@pytest.mark.parametrize("name", sorted(expected()), ids=lambda name: name.replace(" ", "-"))
def test_a_case_gives_what_the_reference_gives(builds: Builds, bases: None, name: str) -> None:
    number, want = name[:3], expected()[name]
    case = json.loads(sources()[number]["case.json"][1])
    query = {
        "dockerfile": "Dockerfile.inline" if case["inline"] else case["dockerfile"],
        "buildargs": json.dumps(case["buildArgs"] or {}),
        "t": f"case:{number}",
    }

    done = builds.build(context(number), **query)

    if number in FOREIGN:
        return
    if number in DIFFERENT:
        assert bool(done.error) == (number == "138"), done.error
    elif want.get("result") == "fail":
        assert done.error
    else:
        assert not done.error
        config = builds.config(f"case:{number}")
        assert {key: config[key] for key in _KEPT if key in config} == want["config"]
        assert_same_files(builds, f"case:{number}", want["fs"])


_NAMES: dict[Path, frozenset[str]] = {}


def _names_of_base(builds: Builds) -> frozenset[str]:
    state = builds.engine.state
    if state not in _NAMES:
        _NAMES[state] = frozenset(builds.files("mirror.gcr.io/busybox"))
    return _NAMES[state]


def assert_same_files(builds: Builds, image: str, want: dict[str, list[Any]]) -> None:
    """What the case has beside its base; the bases are not the reference's."""
    base = _alpine() if "etc/alpine-release" in want else _base() if "bin" in want else {}
    own = {path for path in want if path not in base or want[path] != base[path]}
    stand_in = _names_of_base(builds) if base else frozenset()
    found = builds.files(image)
    places = stand_in | set(base) | {"dev", "proc", "sys"}
    extra = {path for path in found if path not in want and path not in places}
    assert extra == set()
    for path in sorted(own):
        assert path in found, path
        assert described(*found[path]) == want[path][:7], path
        if want[path][0] == "f" and want[path][7]:
            assert int(found[path][0].mtime) == want[path][7], path
