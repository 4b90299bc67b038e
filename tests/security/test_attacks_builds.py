"""A37 to A39: mounts, contexts and secrets of builds, tried on a real engine."""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from build.conftest import Builds, build_engine, builds, packed  # noqa: F401  # fixtures

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]


def archive(*entries: tarfile.TarInfo, **files: str) -> bytes:
    """A context with whatever entries, and plain files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for entry in entries:
            made.addfile(entry, io.BytesIO(b"x" * entry.size))
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content.encode()))
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """An entry that is no plain file."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def link(name: str, target: str) -> tarfile.TarInfo:
    return special(name, tarfile.SYMTYPE, target)


# --- A37 ------------------------------------------------------------------------------------------


@pytest.mark.attack("A37")
def test_a_link_in_a_cache_leads_nowhere(builds: Builds, host_canary: Path) -> None:  # noqa: F811
    plant = "FROM busybox\nRUN --mount=type=cache,id=evil,target=/c ln -sfn / /c/out\n"
    assert not builds.build({"Dockerfile": plant}, nocache="1").error

    use = "FROM busybox\nRUN --mount=type=cache,id=evil,source=out,target=/m cat /m{}\n"
    done = builds.build({"Dockerfile": use.format(host_canary)}, nocache="1")

    assert "the cache has no directory out" in done.error


@pytest.mark.attack("A37")
def test_a_cache_that_is_swapped_meanwhile_shows_nothing_of_the_host(
    builds: Builds,  # noqa: F811
    host_canary: Path,
) -> None:
    swap = (
        "FROM busybox\nRUN --mount=type=cache,id=race,target=/c mkdir -p /c/s && touch /c/begun"
        " && i=0; while [ $i -lt 400 ]; do mv /c/s /c/t; ln -s / /c/s; rm /c/s; mv /c/t /c/s;"
        " i=$((i+1)); done\n"
    )
    look = (
        f"FROM busybox\nRUN --mount=type=cache,id=race,source=s,target=/m ls /m/proc {host_canary}"
    )
    look += f" /m{host_canary}; true\n"
    swapping = threading.Thread(
        target=lambda: builds.build({"Dockerfile": swap}, nocache="1"), daemon=True
    )
    swapping.start()
    seen = ""
    while swapping.is_alive():
        seen += builds.build({"Dockerfile": look}, nocache="1").text.split("Step 2/2")[-1]
    swapping.join()

    assert "version" not in seen, "a step saw the host's /proc"
    assert f"\n/m{host_canary}\n" not in seen


@pytest.mark.attack("A37")
def test_a_bind_of_a_link_stays_in_its_context(builds: Builds, host_canary: Path) -> None:  # noqa: F811
    text = (
        "FROM busybox\nRUN --mount=type=bind,source=out,target=/m ls -A /m; cat /m{} 2>&1; true\n"
    )

    done = builds.build(
        archive(link("out", "/"), Dockerfile=text.format(host_canary), inside="x"), nocache="1"
    )

    assert not done.error
    assert "inside" in done.text
    assert host_canary.read_text() not in done.text


@pytest.mark.attack("A37")
def test_targets_that_climb_and_links_under_targets_stay_inside(
    builds: Builds,  # noqa: F811
    host_canary: Path,
) -> None:
    text = (
        "FROM busybox\nRUN touch /kept && ln -s /kept /run/over && ln -s {} /run/out\n"
        "RUN --mount=type=secret,id=s,target=/run/{} cat /run/over > /seen\n"
        "RUN --mount=type=tmpfs,target=../../../../climbed touch /climbed/t && ls -d /climbed\n"
    )
    before = host_canary.read_bytes()
    secrets = {"s": "c2VjcmV0"}

    inside = {"Dockerfile": text.format(host_canary, "over")}
    good = own_build(builds, inside, secrets=secrets, tags=["over:1"])[-1]
    outside = {"Dockerfile": text.format(host_canary, "out")}
    bad = own_build(builds, outside, secrets=secrets)[-1]

    assert "error" not in good, good
    assert "dangling symlink" in str(bad.get("error"))
    assert host_canary.read_bytes() == before
    assert builds.read("over:1", "seen") == "secret"
    assert builds.read("over:1", "kept") == ""
    assert "climbed" not in builds.files("over:1")


@pytest.mark.attack("A37")
def test_what_is_written_to_a_bind_is_gone(builds: Builds) -> None:  # noqa: F811
    text = "FROM busybox\nRUN --mount=type=bind,target=/m,rw echo evil > /m/f\nCOPY f /f\n"
    text += "RUN --mount=type=bind,target=/m cat /m/f\n"

    done = builds.build({"Dockerfile": text, "f": "good\n"}, t="bound:1", nocache="1")

    assert builds.read("bound:1", "f") == "good\n"
    assert "evil" not in done.text.split("Step 4/4")[-1]


# --- A38 ------------------------------------------------------------------------------------------


@pytest.mark.attack("A38")
@pytest.mark.parametrize(
    "entries",
    [
        (special("../outside", tarfile.REGTYPE),),
        (link("d", "/tmp"), special("d/f", tarfile.REGTYPE)),
        (special("h", tarfile.LNKTYPE, "../../etc/passwd"),),
        (special("h", tarfile.LNKTYPE, "none"),),
    ],
    ids=["dots", "through-a-link", "hard-link-out", "hard-link-to-nothing"],
)
def test_a_hostile_context_is_refused(
    builds: Builds,  # noqa: F811
    entries: tuple[tarfile.TarInfo, ...],
) -> None:
    done = builds.build(archive(*entries, Dockerfile="FROM scratch\nCOPY . /\n"))

    assert "archive entry" in done.error or "build context" in done.error


@pytest.mark.attack("A38")
@pytest.mark.parametrize(
    "dockerfile",
    [link("Dockerfile", "/etc/shadow"), special("Dockerfile", tarfile.FIFOTYPE),
     link("Dockerfile", "../../../etc/shadow"), link("Dockerfile", "Dockerfile")],
    ids=["link", "fifo", "climbing-link", "loop"],
)  # fmt: skip
def test_a_dockerfile_that_is_none_of_the_context_is_not_read(
    builds: Builds,  # noqa: F811
    dockerfile: tarfile.TarInfo,
) -> None:
    done = builds.build(archive(dockerfile, other="x"))

    assert done.error
    assert "root:" not in done.error


@pytest.mark.attack("A38")
def test_links_are_followed_inside_the_context_and_the_stage_only(
    builds: Builds,  # noqa: F811
    host_canary: Path,
) -> None:
    text = f"FROM busybox AS a\nRUN ln -s {host_canary} /abs && ln -s ../../..{host_canary} /rel\n"
    outside = archive(link("out", "/etc"), Dockerfile="FROM scratch\nCOPY out /etc\n")
    beside = archive(link("out", "../../etc/passwd"), Dockerfile="FROM scratch\nCOPY out /p\n")

    found = [builds.build(outside).error, builds.build(beside).error]
    for name in ("abs", "rel"):
        step = f"{text}FROM scratch\nCOPY --from=a /{name} /x\n"
        found.append(builds.build({"Dockerfile": step}).error)

    assert all("not found" in error for error in found), found


@pytest.mark.attack("A38")
def test_an_ignore_file_opens_nothing(builds: Builds) -> None:  # noqa: F811
    files = {
        "Dockerfile": "FROM scratch\nCOPY . /\n",
        ".dockerignore": "*\n!../../etc/passwd\n!f\n",
        "f": "x",
    }

    assert not builds.build(files, t="ignored:1").error
    assert set(builds.files("ignored:1")) == {"f"}


@pytest.mark.attack("A38")
@pytest.mark.parametrize(
    "remote",
    [
        "git://127.0.0.1:1/r.git#--upload-pack=touch",
        "git://127.0.0.1:1/r.git#main:../../etc",
        "ext::sh -c touch",
        "-oProxyCommand=touch@host:x.git",
        "ssh://-oProxyCommand=touch/x.git",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/x",
        "http://[::ffff:169.254.169.254]/x",
        "git://169.254.169.254/r.git",
    ],
)
def test_an_address_is_no_option_and_no_way_to_the_hosts_own_services(
    builds: Builds,  # noqa: F811
    remote: str,
) -> None:
    done = builds.build(b"", remote=remote)
    added = builds.build({"Dockerfile": f"FROM scratch\nADD {remote.replace(' ', '_')} /x\n"})

    assert done.error and added.error
    assert "meta-data" not in done.text


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Sends everybody to the metadata service."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.attack("A38")
def test_a_redirect_is_looked_at_like_an_address(builds: Builds) -> None:  # noqa: F811
    server = http.server.HTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/x"
        done = builds.build({"Dockerfile": f"FROM scratch\nADD {address} /x\n"})
        cloned = builds.build({"Dockerfile": f"FROM scratch\nADD {address}.git /x\n"})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert "builds do not fetch from there" in done.error
    assert cloned.error


@pytest.mark.attack("A38")
def test_a_frontend_is_never_fetched_and_heredocs_are_placed_where_they_belong(
    builds: Builds,  # noqa: F811
) -> None:
    text = "# syntax=evil.invalid/frontend\nFROM scratch\nCOPY <<../../x /d/\nin\n../../x\n"

    done = builds.build({"Dockerfile": text}, t="heredoc:1")

    assert not done.error
    assert set(builds.files("heredoc:1")) == {"d", "d/x"}


# --- A39 ------------------------------------------------------------------------------------------

SECRET = "hunter2-hunter2-hunter2"


def own_build(builds: Builds, files: dict[str, str], **asked: object) -> list[dict[str, object]]:  # noqa: F811
    """A build by tare's own request."""
    document = json.dumps(asked).encode()
    body = len(document).to_bytes(4, "big") + document + packed(files)
    status, content = builds.ask("POST", "/tare/build", body)
    assert status == 200, content
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.attack("A39")
def test_a_secret_is_nowhere_but_in_its_step(builds: Builds, tmp_path: Path) -> None:  # noqa: F811
    text = (
        "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=secret,id=s,env=S"
        ' [ "$(cat /run/secrets/s)" = "$S" ] && wc -c < /run/secrets/s > /n\n'
        "RUN ls /run/secrets 2>&1; env; true\n"
    )
    (tmp_path / "Dockerfile").write_text(text)
    (tmp_path / "secret").write_text(SECRET)

    done = builds.engine.tare(
        "build", "--progress", "plain", "--no-cache", "-t", "secret:1",
        "--secret", f"id=s,src={tmp_path / 'secret'}", str(tmp_path),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert builds.read("secret:1", "n") == f"{len(SECRET)}\n"
    assert "run/secrets" not in builds.files("secret:1")
    assert SECRET not in done.stdout + done.stderr
    grep = ["grep", "-rlaF", SECRET, str(builds.engine.state), str(builds.engine.run_dir)]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.attack("A39")
def test_passwords_in_addresses_are_not_in_the_history(builds: Builds) -> None:  # noqa: F811
    done = builds.build({"Dockerfile": f"FROM scratch\nADD http://u:{SECRET}@127.0.0.1:1/x /x\n"})

    assert done.error
    assert SECRET not in done.error


@pytest.mark.attack("A39")
def test_a_step_stands_behind_the_walls_of_any_container(
    builds: Builds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status; cat /proc/self/uid_map; env"
    text = f"FROM busybox\nENV PATH=/bin\nRUN {look}\n"

    step = builds.build({"Dockerfile": text}, nocache="1").text.partition("Step 3/3")[2]
    container = builds.engine.out("run", "--rm", "busybox", "sh", "-c", look)

    walls = [line for line in container.splitlines() if line.startswith(("Cap", "NoNew", "Sec"))]
    assert len(walls) >= 7
    assert all(line in step for line in walls)
    ids = [line.split() for line in step.splitlines() if line.strip().startswith("0 ")]
    assert ids and all(int(fields[1]) > 0 for fields in ids)
    assert "TARE_" not in step and os.environ["TARE_CGROUP_PARENT"] not in step


@pytest.mark.attack("A39")
def test_two_builds_share_a_step_only_if_all_of_it_is_the_same(builds: Builds) -> None:  # noqa: F811
    """CVE-2024-24557: a cached layer stands for its parent, instruction, arguments and files."""
    base = "FROM busybox\n{}RUN cat /f* 2>/dev/null; echo $A > /out\n"
    variants: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"Dockerfile": base.format("")}, {}),
        ({"Dockerfile": base.format("ARG A\n")}, {"buildargs": '{"A": "1"}'}),
        ({"Dockerfile": base.format("ARG A\n")}, {"buildargs": '{"A": "2"}'}),
        ({"Dockerfile": base.format("ENV A=3\n")}, {}),
        ({"Dockerfile": base.format("ARG A=4\n")}, {}),
        ({"Dockerfile": base.format("COPY f /f\n"), "f": "1"}, {}),
        ({"Dockerfile": base.format("COPY f /f\n"), "f": "2"}, {}),
        ({"Dockerfile": base.format("COPY f /f2\n"), "f": "1"}, {}),
        ({"Dockerfile": base.format("USER 0:5\n")}, {}),
        ({"Dockerfile": base.format("WORKDIR /tmp\n")}, {}),
        ({"Dockerfile": base.format('SHELL ["/bin/ash", "-c"]\n')}, {}),
        ({"Dockerfile": base.format("")}, {"networkmode": "none"}),
        ({"Dockerfile": base.format("")}, {"extrahosts": "a:1.2.3.4"}),
    ]
    builds.ask("POST", "/build/prune?all=1")

    for files, query in variants:
        done = builds.build(files, **query)

        assert not done.error
        assert any(step.startswith("RUN cat") for step in done.ran()), (files, query)


@pytest.mark.attack("A39")
def test_what_asks_for_privilege_is_refused(builds: Builds) -> None:  # noqa: F811
    for step in (
        "RUN --security=insecure id",
        "RUN --network=host id",
        "RUN --device=x,required id",
    ):
        assert builds.build({"Dockerfile": f"FROM busybox\n{step}\n"}).error, step


@pytest.mark.attack("A39")
def test_an_unsaid_wish_in_the_document_is_refused(builds: Builds) -> None:  # noqa: F811
    document = json.dumps({"privileged": True}).encode()

    status, content = builds.ask("POST", "/tare/build", len(document).to_bytes(4, "big") + document)

    assert status == 400
    assert b"privileged" in content
