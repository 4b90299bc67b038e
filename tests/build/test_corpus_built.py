"""The Dockerfiles of the corpus that need nothing but a shell, really built.

Their bases are busybox by other names, with scripts in place of the few tools they call. A file
that needs real packages, a compiler or a network is read and expanded only
(`build/dockerfile/test_corpus.py`).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from build.conftest import Builds
from harness.engines import Engine
from tare.model.oci import host_platform

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

_CORPUS: Final = Path(__file__).resolve().parents[1] / "data" / "dockerfiles"
_HOST: Final = host_platform(os.uname().machine)
_SCRATCH_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLS: Final = {
    "apk": "#!/bin/sh\n",
    "strip": "#!/bin/sh\n",
    "make": "#!/bin/sh\necho made > hello\n",
}


@dataclass(frozen=True)
class Case:
    """What a file needs in its context, and what it makes: some of the configuration and files."""

    config: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    context: Mapping[str, str | bytes] = field(default_factory=dict)


def _rootfs() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        entry = tarfile.TarInfo("etc/os-release")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"x\n"))
    return out.getvalue()


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


CASES: Final = {
    "args-in-from": Case(
        {"Labels": {"base": "debian:bookworm", "suite": "bookworm", "variant": ""}}
    ),
    "bootstrapped-base": Case(
        {"Env": [_SCRATCH_PATH, "LANG=C.UTF-8"], "Cmd": ["bash"]},
        {"etc/os-release": "x\n"},
        ("rootfs.tar.xz",),
        {"rootfs.tar.xz": _rootfs()},
    ),
    "byte-order-mark": Case({"Labels": {"name": "größe", "sign": "☃"}}),
    "c-static": Case(
        {"Entrypoint": ["/hello"]},
        {"hello": "made\n"},
        ("bin/sh", "src/hello"),
        {"Makefile": "", "a.c": "", "a.h": ""},
    ),
    "casing-mixed": Case({"Env": ["PATH=/bin", "A=1"], "Cmd": ["b"]}),
    "checks-skipped": Case(
        {"Env": ["PATH=/bin", "a=b", "c=d"], "Cmd": ["/bin/sh", "-c", "sh"]},
    ),
    "comments-everywhere": Case(
        {
            "Cmd": [
                "/bin/sh",
                "-c",
                '["sh"] # not a comment in shell form: JSON is broken by it',
            ]
        }
    ),
    "copy-flags": Case(
        files={
            "app/f": "src/f",
            "parents/a/x.txt": "lib/a/x.txt",
            "parents/lib/a/y.txt": "lib/a/y.txt",
            "parents/lib/b/y.txt": "lib/b/y.txt",
            "old-release": "3.19\n",
            "site/a.txt": "a.txt",
            "q/quoted": "quoted",
            "q/single": "single",
            **{f"some/{name}": name for name in ("a.txt", "b1.txt", "c.txt", "d.txt")},
        },
        absent=("site/README.md", "site/node_modules", "some/e.txt"),
        context=_named(
            "src/f", "lib/a/x.txt", "lib/a/y.txt", "lib/b/y.txt", "README.md", "node_modules/m",
            "a.txt", "b1.txt", "c.txt", "d.txt", "e.txt", "quoted", "single",
        ),
    ),
    "escape-backtick": Case(
        {"Env": ["PATH=/bin", "DIR=C:\\tools", "OTHER=$HOME"], "WorkingDir": "/C:\\data"},
        {"C:\\data/C:\\target\\": "f"},
        context={"file.txt": "f"},
    ),
    "expansion-forms": Case(
        {
            "WorkingDir": "/usr/local/archive",
            "Labels": {"empty": "", "multi": "one two", "quoted key": "a b"},
            "Env": [
                "PATH=/bin", "name=archive.tar.gz", "path=/usr/local/lib", "short=archive.tar",
                "shortest=archive", "ext=tar.gz", "last=gz", "dash=-usr-local-lib",
                "first=/usr/Local/lib", "default=fallback archive.tar.gz", "alt=set", "none=",
                "plain=x", "single=$name", "escaped=$name", 'mixed=it\'s "archive.tar.gz"',
                "spaced=a b", "old=style value with archive.tar.gz inside", "self=:more",
                "nested=archive.tar.gz",
            ],
        }
    ),
    "heredoc-files": Case(
        {"Entrypoint": ["run"]},
        {
            "etc/app/app.conf": 'port = 8080\nname = ""\n',
            "etc/app/notes.txt": "costs $5\n",
            "usr/local/bin/run": '#!/bin/sh\nexec "$@"\n',
        },
    ),
    "labels-oci": Case(
        {
            "Labels": {
                "org.opencontainers.image.title": "Example",
                "org.opencontainers.image.version": "dev",
                "org.opencontainers.image.revision": "",
                "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
                "com.example.note": "This is the old form",
            }
        }
    ),
    "many-stages": Case(
        {"Env": [_SCRATCH_PATH]}, {"out/a": "a\n", "out/b": "b\n"}, ("a", "bin/sh")
    ),
    "platforms": Case(files={"info": f"{_HOST.architecture} -> {_HOST} \n"}),
    "ports-and-volumes": Case(
        {
            "Volumes": {"/a": {}, "/b": {}, "/c d": {}},
            "ExposedPorts": {
                port: {}
                for port in (
                    "80/tcp", "443/tcp", "53/udp", "9000/tcp", "7000/udp", "7001/udp", "7002/udp",
                    "3868/sctp", "8000/tcp", "8001/tcp", "5000/tcp", "8080/tcp",
                )
            },
        }
    ),
    "windows-line-ends": Case({"Cmd": ["sh"]}, {"x": "line\r\n"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(build_engine: Engine) -> Builds:
    """Builds where the images are that the corpus starts from."""
    build_engine.out("version")
    builds = Builds(build_engine)
    text = "FROM busybox\nCOPY --chmod=755 tools/ /bin/\nCOPY release /etc/alpine-release\n"
    tools = {f"tools/{name}": script for name, script in _TOOLS.items()}
    files = {"Dockerfile": text, "release": "3.19\n", **tools}
    for name in (
        "busybox:1.36",
        "debian:bookworm",
        "alpine:3.19",
        "alpine:3.20",
        "gcc:13-bookworm",
    ):
        done = builds.build(files, t=name)
        assert not done.error, done.error
    return builds


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_the_corpus_is_built_to_what_it_says(corpus: Builds, name: str) -> None:
    case = CASES[name]
    text = (_CORPUS / f"{name}.Dockerfile").read_bytes()

    done = corpus.build({**case.context, "Dockerfile": text}, t=f"corpus-{name}:1")

    assert not done.error, done.error
    config = corpus.config(f"corpus-{name}:1")
    files = corpus.files(f"corpus-{name}:1")
    assert {key: config.get(key) for key in case.config} == case.config
    assert {path: files[path][1].decode() for path in case.files} == case.files
    assert [path for path in case.absent if path in files] == []
