"""Whole builds on a real engine: what the language asks for, and what it must never do."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

import pytest

from build.conftest import Builds, Connection, Outcome, packed

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

TEN: Final = """\
FROM busybox
ARG VERSION=1
ENV A=b
WORKDIR /work
COPY app /app/
COPY b.txt .
RUN echo $VERSION > version
RUN cat /app/a.txt b.txt > both
LABEL l=1
CMD ["cat", "both"]
"""
CONTEXT: Final = {"Dockerfile": TEN, "app/a.txt": "a\n", "b.txt": "b\n"}


def rebuilt(builds: Builds, first: dict[str, str], second: dict[str, str], **query: str) -> Outcome:
    """The outcome of the second build, right after the first."""
    assert not builds.build(first, **query).error
    done = builds.build(second, **query)
    assert not done.error
    return done


# --- the cache ------------------------------------------------------------------------------------


def test_the_same_build_again_runs_nothing_and_gives_the_same_image(builds: Builds) -> None:
    first = builds.build(CONTEXT, t="ten:1")

    again = builds.build(CONTEXT, t="ten:1")

    assert again.ran() == []
    assert again.id == first.id
    assert builds.engine.out("run", "--rm", "ten:1") == "a\nb"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"b.txt": "c\n"}, ["COPY b.txt .", "RUN echo $VERSION > version", "RUN cat"]),
        ({"app/a.txt": "x\n"}, ["COPY app /app/", "COPY b.txt .", "RUN echo", "RUN cat"]),
        ({"unused.txt": "x\n"}, []),
        ({"Dockerfile": TEN.replace("l=1", "l=2")}, []),
        ({"Dockerfile": TEN.replace("RUN cat /app", "RUN  cat  /app")}, ["RUN cat"]),
        ({"Dockerfile": TEN.replace("WORKDIR /work", "# a comment\nWORKDIR /work")}, []),
        (
            {"Dockerfile": TEN.replace("A=b", "A=c")},
            ["RUN echo $VERSION > version", "RUN cat"],
        ),
        (
            {"Dockerfile": TEN.replace("VERSION=1", "VERSION=2")},
            ["RUN echo $VERSION > version", "RUN cat"],
        ),
    ],
    ids=["file", "directory", "unused", "label", "words", "comment", "env", "arg"],
)
def test_one_change_runs_exactly_the_steps_that_depend_on_it(
    builds: Builds, change: dict[str, str], expected: list[str]
) -> None:
    done = rebuilt(builds, CONTEXT, {**CONTEXT, **change})

    layers = [" ".join(text.split()) for text in done.ran() if text.startswith(("RUN", "COPY"))]
    assert len(layers) == len(expected), layers
    for text, beginning in zip(layers, expected, strict=True):
        assert text.startswith(beginning)


def test_an_argument_that_is_declared_after_a_step_does_not_run_it_again(builds: Builds) -> None:
    dockerfile = "FROM busybox\nRUN echo early\nARG LATE=1\nRUN echo $LATE\n"
    files = {"Dockerfile": dockerfile}
    assert not builds.build(files).error

    done = builds.build(files, buildargs=json.dumps({"LATE": "2"}))

    assert done.ran() == ["ARG LATE=1", "RUN echo $LATE"]


def test_times_of_files_mean_nothing_and_modes_do(builds: Builds) -> None:
    files = {"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "x"}
    assert not builds.build(packed(files)).error

    touched = builds.build(packed(files, mtime=1_600_000_000))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content.encode()))
    changed = builds.build(out.getvalue())

    assert touched.ran() == []
    assert changed.ran() == ["COPY f /f"]


def test_what_is_copied_out_of_a_stage_counts_not_how_it_was_made(builds: Builds) -> None:
    text = "FROM busybox AS a\nRUN echo {} && echo same > /f && touch -d @1 /f\n"
    text += "FROM busybox\nCOPY --from=a /f /f\nRUN cat /f\n"

    done = rebuilt(builds, {"Dockerfile": text.format("one")}, {"Dockerfile": text.format("two")})

    assert [step for step in done.ran() if "echo" not in step] == []


def test_no_cache_runs_everything_and_the_next_build_takes_the_new_results(builds: Builds) -> None:
    files = {"Dockerfile": "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /u\n"}
    first = builds.build(files)
    second = builds.build(files, nocache="1")

    third = builds.build(files)

    assert second.ran() and second.id != first.id
    assert third.ran() == [] and third.id == second.id


def test_pruned_steps_run_again_and_images_stay_whole(builds: Builds) -> None:
    files = {"Dockerfile": "FROM busybox\nRUN echo pruned > /p\n"}
    builds.build(files, t="pruned:1")

    status, content = builds.ask("POST", "/build/prune?all=1")

    assert status == 200 and json.loads(content)["CachesDeleted"]
    assert builds.read("pruned:1", "p") == "pruned\n"
    assert builds.build(files, t="pruned:1").ran() == ["RUN echo pruned > /p"]


def test_the_history_of_an_image_is_a_cache_where_it_is_trusted(
    builds: Builds, tmp_path: Path
) -> None:
    files = {"Dockerfile": "FROM busybox\nRUN echo kept > /k\n"}
    builds.build(files, t="kept:1")
    builds.ask("POST", "/build/prune?all=1")

    done = builds.build(files, cachefrom=json.dumps(["kept:1"]))

    assert done.ran() == []


def test_builds_beside_prunes_and_each_other_all_come_about(builds: Builds) -> None:
    files = {"Dockerfile": "FROM busybox\nRUN echo {} > /f\nCOPY x /x\n", "x": "x"}
    errors: list[str] = []

    def build(number: int) -> None:
        for turn in range(4):
            text = files["Dockerfile"].format(number % 2)
            done = builds.build({**files, "Dockerfile": text}, t=f"beside:{number}-{turn}")
            errors.append(done.error)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        builds.ask("POST", "/build/prune?all=1")
        builds.ask("POST", "/images/prune")

    assert errors == [""] * 16
    for number in range(4):
        assert builds.read(f"beside:{number}-3", "f") == f"{number % 2}\n"


# --- the language ---------------------------------------------------------------------------------


def test_only_the_stages_that_the_target_needs_are_built(builds: Builds) -> None:
    text = "FROM busybox AS unused\nRUN false\nFROM busybox AS first\nRUN echo 1 > /1\n"
    text += "FROM first AS last\nCOPY --from=first /1 /2\n"

    whole = builds.build({"Dockerfile": text}, t="last:1")
    part = builds.build({"Dockerfile": text}, target="unused")

    assert builds.read("last:1", "2") == "1\n"
    assert "returned a non-zero code: 1" in part.error
    assert "RUN false" not in whole.text


def test_independent_stages_run_at_the_same_time(builds: Builds) -> None:
    meet = (
        "RUN --mount=type=cache,target=/c touch /c/{} && while [ ! -e /c/{} ]; do usleep 1000; done"
    )
    text = (
        f"FROM busybox AS a\n{meet.format('a', 'b')}\nFROM busybox AS b\n{meet.format('b', 'a')}\n"
    )
    text += "FROM scratch\nCOPY --from=a /etc/group /a\nCOPY --from=b /etc/group /b\n"

    done = builds.build({"Dockerfile": text}, nocache="1")

    assert not done.error


def test_triggers_of_a_base_run_in_the_image_that_is_built_on_it(builds: Builds) -> None:
    builds.build(
        {"Dockerfile": "FROM busybox\nONBUILD COPY f /f\nONBUILD RUN cat /f > /g\n"}, t="on:1"
    )

    done = builds.build({"Dockerfile": "FROM on:1\n", "f": "trigger"}, t="on:2")

    assert not done.error
    assert builds.read("on:2", "g") == "trigger"
    assert "OnBuild" not in builds.config("on:2")


def test_heredocs_are_programs_scripts_and_files(builds: Builds) -> None:
    text = "FROM busybox\nRUN <<EOF\necho one > /1\necho two > /2\nEOF\n"
    text += 'RUN <<EOF\n#!/bin/cat\nscript\nEOF\nCOPY <<A <<"B" /d/\n$PATH\nA\n$PATH\nB\n'

    done = builds.build({"Dockerfile": text}, t="here:1")

    assert builds.read("here:1", "1") + builds.read("here:1", "2") == "one\ntwo\n"
    assert "#!/bin/cat\nscript" in done.text
    assert builds.read("here:1", "d/A") == "/bin\n"
    assert builds.read("here:1", "d/B") == "$PATH\n"


def test_mounts_are_there_for_their_step_only(builds: Builds) -> None:
    text = (
        "FROM busybox AS other\nRUN echo other > /o\nFROM busybox\n"
        "RUN --mount=type=bind,target=/ctx,rw --mount=type=bind,from=other,source=/o,target=/x/o"
        " --mount=type=tmpfs,target=/t --mount=type=cache,target=/c,id=mounts,uid=7,mode=0700"
        " cat /ctx/f /x/o && echo w > /ctx/f && touch /t/t && stat -c '%u %a' /c && echo 1 > /c/1\n"
        "RUN --mount=type=bind,target=/ctx --mount=type=cache,target=/c,id=mounts"
        " cat /ctx/f /c/1; ls /t /x 2>&1; touch /ctx/g 2>&1; true\n"
    )

    done = builds.build({"Dockerfile": text, "f": "context\n"}, t="mounts:1", nocache="1")

    assert not done.error
    assert "context\nother\n7 700\n" in done.text
    assert "context\n1\n" in done.text, "writes to a bind are gone, those to a cache are kept"
    assert "Read-only file system" in done.text
    assert not {"ctx", "x", "x/o", "t", "c"} & set(builds.files("mounts:1"))


TALK: Final = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
  struct sockaddr_un there = {.sun_family = AF_UNIX};
  strcpy(there.sun_path, getenv("SSH_AUTH_SOCK"));
  int talk = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(talk, (void *)&there, sizeof there)) return 9;
  char answer[64];
  write(talk, "ping", 4);
  return write(1, answer, read(talk, answer, 64)) != 5;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_an_agent_answers_a_step_that_is_somebody_else(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "talk.c").write_text(TALK)
    compiled = subprocess.run(
        ["cc", "-static", "-w", "-o", tmp_path / "talk", tmp_path / "talk.c"],
        check=False,
        capture_output=True,
    )
    if compiled.returncode:
        pytest.skip("the C compiler makes no static programs")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nCOPY --chmod=755 talk /bin/talk\nUSER 1000\n"
        "RUN --mount=type=ssh,uid=1000,required talk > /tmp/said\nRUN ls /run/buildkit; true\n"
    )
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "s"))
        agent.listen()
        agent.settimeout(120)
        client = builds.engine.begin(
            "build", "--ssh", f"default={tmp_path / 's'}", "-t", "agent:1", "--no-cache",
            str(tmp_path),
        )  # fmt: skip
        with agent.accept()[0] as step:
            assert step.recv(64) == b"ping"
            step.sendall(b"pong\n")
        _, told = client.communicate(timeout=120)

    assert client.returncode == 0, told
    assert builds.read("agent:1", "tmp/said") == "pong\n"
    assert "run/buildkit" not in builds.files("agent:1")


def test_owners_and_modes_are_those_asked_for(builds: Builds) -> None:
    text = (
        "FROM busybox\nRUN echo 'u:x:12:34::/:/bin/sh' >> /etc/passwd\n"
        "COPY --chown=u f /a\nCOPY --chown=5 f /b\nCOPY --chown=5:6 --chmod=4711 f /c\n"
        "COPY --chmod=u=rwX,go= d /d/\n"
    )

    done = builds.build({"Dockerfile": text, "f": "x", "d/": "", "d/e": "y"}, t="own:1")

    assert not done.error
    files = builds.files("own:1")
    owner = {name: (files[name][0].uid, files[name][0].gid) for name in "abc"}
    assert owner == {"a": (12, 34), "b": (5, 5), "c": (5, 6)}
    assert files["c"][0].mode == 0o4711
    assert files["d/e"][0].mode == 0o600


def test_a_linked_copy_survives_a_change_of_what_is_below(builds: Builds) -> None:
    text = "FROM busybox\nRUN echo {}\nCOPY --link f /f\n"

    done = rebuilt(
        builds,
        {"Dockerfile": text.format(1), "f": "x"},
        {"Dockerfile": text.format(2), "f": "x"},
    )

    assert done.ran() == ["RUN echo 2"]


def test_directories_of_the_base_keep_their_modes_below_a_copy(builds: Builds) -> None:
    done = builds.build({"Dockerfile": "FROM busybox\nCOPY f /tmp/f\n", "f": "x"}, t="tmp:1")

    assert not done.error
    assert builds.files("tmp:1")["tmp"][0].mode == 0o1777


def test_the_programs_of_a_build_are_no_containers_and_leave_no_stubs(builds: Builds) -> None:
    text = 'FROM scratch\nCOPY --from=busybox /bin/ /bin/\nRUN ["/bin/busybox", "touch", "/f"]\n'

    done = builds.build({"Dockerfile": text}, t="stubs:1")

    assert not done.error
    assert builds.engine.out("ps", "-aq") == ""
    assert {name.partition("/")[0] for name in builds.files("stubs:1")} == {"bin", "f"}


# --- ADD ------------------------------------------------------------------------------------------


def tarred(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.uid = len(name), 7
            archive.addfile(entry, io.BytesIO(name.encode()))
    return out.getvalue()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_archives_are_unpacked_whatever_they_are_compressed_with(
    builds: Builds, compress: Callable[[bytes], bytes]
) -> None:
    archive = compress(tarred("x/y"))
    text = "FROM scratch\nADD a /d/\nADD --unpack=false a /kept\nADD plain /p/\n"

    done = builds.build(
        {"Dockerfile": text, "a": archive, "plain": "BZh is not enough"},
        t="unpacked:1",
    )

    assert not done.error
    files = builds.files("unpacked:1")
    assert files["d/x/y"][1] == b"x/y" and files["d/x/y"][0].uid == 7
    assert files["kept"][1] == archive
    assert files["p/plain"][1] == b"BZh is not enough"


class Served(http.server.SimpleHTTPRequestHandler):
    """A directory, without a word on standard error."""

    bodies = 0  # how many files were sent
    paths: ClassVar[list[str]] = []

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Count what is sent."""
        found = super().send_head()
        Served.bodies += found is not None
        Served.paths.append(self.path)
        return found

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and where it is served."""
    root = tmp_path / "web"
    root.mkdir()

    def serve(*words: object) -> Served:
        return Served(*words, directory=str(root))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_and_what_is_not_what_it_should_be_is_refused(
    builds: Builds, web: tuple[Path, str]
) -> None:
    root, address = web
    (root / "f.txt").write_text("fetched")
    digest = hashlib.sha256(b"fetched").hexdigest()
    text = "FROM scratch\nADD --checksum=sha256:{} {}/f.txt /d/\n"

    good = builds.build({"Dockerfile": text.format(digest, address)}, t="web:1")
    bad = builds.build({"Dockerfile": text.format("0" * 64, address)})
    gone = builds.build({"Dockerfile": f"FROM scratch\nADD {address}/none /d/\n"})

    assert not good.error
    assert builds.read("web:1", "d/f.txt") == "fetched"
    assert f"sha256:{digest}" in bad.error
    assert "404" in gone.error


def test_two_equal_builds_at_once_do_each_step_once(builds: Builds) -> None:
    # It ends only when the second build waits for it, which that build says.
    text = {
        "Dockerfile": "FROM busybox\nRUN --mount=type=cache,id=twice,target=/c"
        " echo run >> /c/runs && while [ ! -e /c/go ]; do usleep 1000; done; cp /c/runs /runs\n"
    }
    release = {
        "Dockerfile": "FROM busybox\nRUN --mount=type=cache,id=twice,target=/c touch /c/go\n"
    }
    found: dict[str, Outcome] = {}
    seen: list[str] = []
    both = []
    for name in ("twice:1", "twice:2"):
        both.append(threading.Thread(target=watched, args=(builds, text, name, found, seen)))
        both[-1].start()
        wait_until(lambda: any(line.startswith("Step 2/2") for line in seen))
    wait_until(lambda: any("another build is doing this already" in line for line in seen))

    released = builds.build(release)
    for thread in both:
        thread.join()

    assert not released.error
    assert found["twice:1"].id == found["twice:2"].id
    assert builds.read("twice:1", "runs") == "run\n"


def watched(
    builds: Builds, files: dict[str, str], name: str, found: dict[str, Outcome], seen: list[str]
) -> None:
    """Build *name*, and tell its lines as they come."""
    connection = Connection(builds.engine.run_dir / "tare.sock")
    try:
        connection.request("POST", f"/build?t={name}", packed(files))
        lines = []
        for line in connection.getresponse():
            lines.append(json.loads(line))
            seen.append(str(lines[-1].get("stream", lines[-1].get("status", ""))))
        found[name] = Outcome(lines)
    finally:
        connection.close()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something that will come; generous, for a host that is busy."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_what_base_images_set_and_are_made_for_is_known_to_the_checks(builds: Builds) -> None:
    builds.build({"Dockerfile": "FROM busybox\nENV SAID=1\n"}, t="knows:1")
    text = "FROM knows:1\nENV A=$SAID$PATH B=$UNHEARD\n"

    done = builds.build({"Dockerfile": text})

    assert "Usage of undefined variable '$UNHEARD'" in done.text
    assert "$SAID" not in done.text.partition("Usage of")[2].partition("Step ")[0].splitlines()[0]
    assert done.text.count("Usage of undefined variable") == 1


def test_a_file_that_its_server_vouches_for_is_not_fetched_again(
    builds: Builds, web: tuple[Path, str]
) -> None:
    root, address = web
    file = root / "again.txt"
    file.write_text("first")
    os.utime(file, (1_600_000_000, 1_600_000_000))
    text = {"Dockerfile": f"FROM scratch\nADD {address}/again.txt /a\n"}
    sent = Served.bodies

    first = builds.build(text)
    once = Served.bodies - sent
    second = builds.build(text)
    twice = Served.bodies - sent
    other = builds.build({"Dockerfile": text["Dockerfile"] + f"ADD {address}/again.txt /b\n"})
    file.write_text("other")
    os.utime(file, (1_600_000_100, 1_600_000_100))
    changed = builds.build(text, t="again:1")

    assert first.id == second.id
    assert (once, twice) == (1, 1)
    assert not other.error, other.error
    assert len(other.ran()) == 1
    assert changed.ran()
    assert builds.read("again:1", "a") == "other"


def test_a_file_that_changed_just_now_is_fetched_again(
    builds: Builds, web: tuple[Path, str]
) -> None:
    root, address = web
    file = root / "now.txt"
    file.write_text("first")
    stamp = file.stat().st_mtime
    text = {"Dockerfile": f"FROM scratch\nADD {address}/now.txt /a\n"}

    builds.build(text)
    file.write_text("other")
    os.utime(file, (stamp, stamp))
    changed = builds.build(text, t="now:1")

    assert changed.ran()
    assert builds.read("now:1", "a") == "other"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_branch_that_did_not_move_is_not_cloned_again(
    builds: Builds, web: tuple[Path, str]
) -> None:
    root, address = web
    work, bare = root / "work", root / "still.git"
    user = ("-C", str(work), "-c", "user.name=t", "-c", "user.email=t@t")

    def git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, capture_output=True)

    def commit(content: str) -> None:
        (work / "f").write_text(content)
        git("-C", str(work), "add", "-A")
        git(*user, "commit", "-q", "-m", content)
        git("-C", str(work), "push", "-q", str(bare), "main")
        git("-C", str(bare), "update-server-info")

    git("init", "-q", "-b", "main", str(work))
    git("init", "-q", "--bare", "-b", "main", str(bare))
    commit("first")
    text = {"Dockerfile": f"FROM scratch\nADD {address}/still.git#main /r\n"}

    first = builds.build(text)
    asked = len(Served.paths)
    second = builds.build(text)
    paths = Served.paths[asked:]
    commit("second")
    third = builds.build(text, t="still:1")

    assert first.id == second.id
    assert not [path for path in paths if "/objects/" in path], "it was cloned again"
    assert third.ran()
    assert builds.read("still:1", "r/f") == "second"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_is_a_context_and_a_source(builds: Builds, web: tuple[Path, str]) -> None:
    root, address = web
    work = root / "work"
    commands = [
        ["init", "-q", "-b", "main", str(work)],
        ["-C", str(work), "add", "-A"],
        ["-C", str(work), "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "m"],
        ["clone", "-q", "--bare", str(work), str(root / "r.git")],
        ["-C", str(root / "r.git"), "update-server-info"],
    ]
    for number, words in enumerate(commands):
        subprocess.run(["git", *words], check=True, capture_output=True)
        if not number:
            (work / "sub").mkdir()
            (work / "sub/Dockerfile").write_text("FROM scratch\nCOPY f /f\nCOPY . /all/\n")
            (work / "sub/f").write_text("cloned")
            (work / "sub/.dockerignore").write_text("Dockerfile\n")

    context = builds.build(b"", remote=f"{address}/r.git#main:sub", t="git:1")
    source = builds.build({"Dockerfile": f"FROM scratch\nADD {address}/r.git#main /r\n"}, t="git:2")

    assert not context.error
    assert builds.read("git:1", "f") == "cloned"
    assert "all/Dockerfile" not in builds.files("git:1")
    assert not source.error
    assert builds.read("git:2", "r/sub/f") == "cloned"
    assert "r/.git" not in builds.files("git:2")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_submodules_come_along_but_not_from_the_hosts_own_files(
    builds: Builds, web: tuple[Path, str]
) -> None:
    root, address = web
    user = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"]

    def git(*words: str | Path) -> None:
        subprocess.run(["git", *user, *map(str, words)], check=True, capture_output=True)

    def published(name: str) -> None:
        git("clone", "-q", "--bare", root / name, root / f"{name}.git")
        git("-C", root / f"{name}.git", "update-server-info")

    for name in ("inner", "good", "evil"):
        git("init", "-q", "-b", "main", root / name)
        (root / name / "f").write_text(name)
        git("-C", root / name, "add", "f")
        git("-C", root / name, "commit", "-q", "-m", "m")
    published("inner")
    git("-C", root / "good", "submodule", "--quiet", "add", f"{address}/inner.git", "sub")
    git("-C", root / "evil", "submodule", "--quiet", "add", f"file://{root}/inner.git", "sub")
    for name in ("good", "evil"):
        git("-C", root / name, "commit", "-q", "-m", "s")
        published(name)
    text = "FROM scratch\nADD {}/{}.git#main /r\n"

    good = builds.build({"Dockerfile": text.format(address, "good")}, t="sub:1")
    evil = builds.build({"Dockerfile": text.format(address, "evil")})

    assert not good.error
    assert builds.read("sub:1", "r/sub/f") == "inner"
    assert "file" in evil.error


# --- reproducible ---------------------------------------------------------------------------------


def test_the_same_inputs_and_epoch_give_the_same_image(builds: Builds) -> None:
    files = {
        "Dockerfile": "FROM busybox\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\nCOPY f .\n"
        'RUN mkdir -p a/b && echo x > a/b/c && ln -s c a/b/d\nCMD ["true"]\n',
        "f": "x",
    }
    query = {"buildargs": json.dumps({"SOURCE_DATE_EPOCH": "1000000000"}), "nocache": "1"}

    first, second = (builds.build(files, t="same:1", **query) for _ in range(2))

    assert first.ran() and second.ran()
    assert first.id == second.id
    entries = [entry for entry, _ in builds.files("same:1").values()]
    assert max(entry.mtime for entry in entries) <= 1_500_000_000


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dockerfile", "sentence"),
    [
        ("FROM busybox\nRUN exit 3\n", "returned a non-zero code: 3"),
        ("FROM busybox\nCOPY none /\n", '"/none": not found'),
        ("FROM busybox\nCOPY no* /\n", "no source files were specified"),
        ("FROM busybox\nCOPY --from=none-such /x /\n", "none-such"),
        ("FROM busybox\nRUN --mount=type=secret,id=s,required true\n", "secret s: not found"),
        ("FROM busybox\nRUN --security=insecure true\n", "not allowed"),
        ("FROM busybox\nRUN --network=host true\n", "not allowed"),
        ("FROM busybox\nCOPY --chown=nobody-here Dockerfile /\n", "nobody-here"),
        ("FROM busybox\nUSER nobody-here\nRUN true\n", "nobody-here"),
        ("FROM busybox\nFOO bar\n", "unknown instruction: FOO"),
        ("FROM none-such-image:1\n", "none-such-image"),
        ("FROM busybox\nCOPY Dockerfile /etc/passwd/x\n", "not a directory"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    builds: Builds, dockerfile: str, sentence: str
) -> None:
    done = builds.build({"Dockerfile": dockerfile})

    assert sentence in done.error


def test_the_client_shows_the_line(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\n\nRUN echo said; exit 3\n")

    done = builds.engine.tare("build", str(tmp_path))

    assert done.returncode == 1
    assert "Dockerfile:3\n" in done.stderr
    assert "   3 | >>> RUN echo said; exit 3\n" in done.stderr
    assert "said" in done.stderr
    assert 'process "/bin/sh -c echo said; exit 3" did not complete successfully' in done.stderr


def test_kill_9_in_the_middle_leaves_nothing_and_the_next_build_goes_on(
    builds: Builds, tmp_path: Path
) -> None:
    text = "FROM busybox\nRUN echo kept > /k\nRUN echo runs && sleep 1000\n"
    (tmp_path / "Dockerfile").write_text(text)
    client = builds.engine.begin("build", "--progress", "plain", str(tmp_path))
    assert client.stderr is not None
    for line in client.stderr:
        if line.endswith(" runs\n") and "RUN" not in line:
            break

    builds.engine.kill(builds.engine.daemon())
    client.communicate(timeout=120)
    builds.engine.out("version")
    done = builds.build({"Dockerfile": text.replace(" && sleep 1000", "")}, t="killed:1")

    assert client.returncode != 0
    assert not done.error
    assert builds.read("killed:1", "k") == "kept\n"
    assert builds.engine.settled_lies() == []
    assert os.listdir(builds.engine.state / "build/tmp") == []


def test_a_client_that_goes_away_ends_its_build(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo runs && sleep 1000\n")
    client = builds.engine.begin("build", "--progress", "plain", str(tmp_path))
    assert client.stderr is not None
    for line in client.stderr:
        if line.endswith(" runs\n") and "RUN" not in line:
            break

    os.killpg(client.pid, signal.SIGKILL)
    client.communicate(timeout=120)

    assert builds.engine.settled_lies() == []


# --- other clients --------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client")
def test_dockers_own_client_builds(builds: Builds, tmp_path: Path) -> None:
    for name, content in CONTEXT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / ".dockerignore").write_text("none\n")
    host = f"unix://{builds.engine.run_dir}/tare.sock"
    environment = {**os.environ, "DOCKER_BUILDKIT": "0", "HOME": str(tmp_path / "home")}

    done = subprocess.run(
        ["docker", "-H", host, "build", "-t", "docker:1", "--label", "x=y", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Successfully tagged docker:1" in done.stdout
    assert builds.config("docker:1")["Labels"] == {"l": "1", "x": "y"}


def test_docker_py_builds(builds: Builds, tmp_path: Path) -> None:
    docker = pytest.importorskip("docker")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo py > /py\n")
    client = docker.DockerClient(base_url=f"unix://{builds.engine.run_dir}/tare.sock")
    try:
        image, lines = client.images.build(path=str(tmp_path), tag="py:1", rm=True)

        assert "py:1" in image.tags
        assert any("RUN echo py" in line.get("stream", "") for line in lines)
        with pytest.raises(docker.errors.BuildError, match="non-zero code: 1"):
            client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN false\n"))
    finally:
        client.close()


def test_outputs_are_what_was_asked_for(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text("FROM scratch\nCOPY f /d/f\n")
    (tmp_path / "c/f").write_text("out")
    where, context = str(tmp_path), str(tmp_path / "c")

    builds.engine.out("build", "-o", f"{where}/local", context)
    builds.engine.out("build", "-o", f"type=tar,dest={where}/t.tar", context)
    builds.engine.out("build", "-o", f"type=oci,dest={where}/o.tar", context)
    builds.engine.out("build", "-q", "--iidfile", f"{where}/id", "-t", "out:1", context)

    assert (tmp_path / "local/d/f").read_text() == "out"
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert "d/f" in archive.getnames()
    with tarfile.open(tmp_path / "o.tar") as archive:
        assert "oci-layout" in archive.getnames()
    identity = (tmp_path / "id").read_text()
    assert builds.engine.out("images", "-q", "--no-trunc", "out:1") == identity


def test_explain_says_why_each_step_ran(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY f /explained\nRUN cat /explained\n")
    (tmp_path / "f").write_text("1")
    first = builds.engine.out("build", "--explain", "--progress", "quiet", str(tmp_path))
    (tmp_path / "f").write_text("2")

    second = builds.engine.out("build", "--explain", "--progress", "quiet", str(tmp_path))
    third = builds.engine.out("build", "--explain", "--progress", "quiet", str(tmp_path))

    assert "it was not built before" in first
    assert "f changed" in second and "what is below it changed" in second
    assert "nothing it depends on changed" in third and "ran" not in third.split()


def test_check_tells_the_mistakes_and_builds_nothing(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox:1\nMAINTAINER me\nRUN exit 1\n")

    done = builds.engine.tare("build", "--check", str(tmp_path))

    assert done.returncode == 1
    assert "MaintainerDeprecated" in done.stdout
    assert "Dockerfile:2" in done.stdout


def test_a_dockerfile_may_come_from_standard_input_or_elsewhere(
    builds: Builds, tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/f").write_text("x")
    (tmp_path / "c/.dockerignore").write_text("ignored\n")
    (tmp_path / "c/ignored").write_text("x")
    (tmp_path / "elsewhere").write_text("FROM scratch\nCOPY . /\n")

    builds.engine.out(
        "build", "-f", str(tmp_path / "elsewhere"), "-t", "else:1", str(tmp_path / "c")
    )

    assert set(builds.files("else:1")) == {"f", ".dockerignore"}


def test_another_platform_is_one_clear_sentence(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")

    done = builds.engine.tare("build", "--platform", "linux/s390x", str(tmp_path))

    assert done.returncode == 1
    assert "cannot build for linux/s390x" in done.stderr


def test_a_daemon_that_is_told_to_end_ends_its_builds_first(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo runs && sleep 1000\n")
    client = builds.engine.begin("build", "--progress", "plain", str(tmp_path))
    assert client.stderr is not None
    for line in client.stderr:
        if line.endswith(" runs\n") and "RUN" not in line:
            break
    daemon = os.pidfd_open(builds.engine.daemon())

    signal.pidfd_send_signal(daemon, signal.SIGTERM)
    ended = select.select([daemon], [], [], 30)[0]
    os.close(daemon)
    client.communicate(timeout=120)

    assert ended
    assert client.returncode != 0
    assert builds.engine.settled_lies() == []
    assert "Traceback" not in builds.engine.log()
