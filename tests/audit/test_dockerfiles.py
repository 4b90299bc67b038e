"""Dockerfiles in the audit: a good one passes, a bad one is found line by line."""

from __future__ import annotations

import pytest

from tare.audit import dockerfile
from tare.audit.finding import Item, Level
from tare.audit.request import DockerfileBody
from tare.errors import InvalidError

GOOD = b"""FROM debian:12@sha256:%s
RUN apt-get update && apt-get install -y --no-install-recommends nginx && rm -rf /var/lib/apt
COPY site /srv
USER 1000
HEALTHCHECK CMD ["true"]
CMD ["nginx"]
""" % (b"a" * 64)
BAD = b"""FROM debian
ENV DATABASE_PASSWORD=hunter2
RUN apt-get update
RUN curl https://x.example/i.sh | sh
ADD site /srv
COPY id_rsa /root/.ssh/
USER root
RUN sudo chmod 4755 /bin/x && chmod 777 /srv
VOLUME /etc
"""


def judged(content: bytes, ignore: bytes | None = None) -> dict[str, list[Item]]:
    body = DockerfileBody(path="Dockerfile", content=content, ignore=ignore)
    return {name: list(items) for name, items in dockerfile.judge([body]).items() if items}


def test_a_good_file_has_no_findings() -> None:
    assert judged(GOOD) == {}


def test_a_bad_file_is_found_out_with_its_lines() -> None:
    found = {name: (items[0].level, items[0].line) for name, items in judged(BAD).items()}

    assert found["dockerfile-secrets-used-in-arg-or-env"] == (Level.FAIL, 2)
    assert found["dockerfile-secret-file-copied"] == (Level.FAIL, 6)
    assert found["dockerfile-untagged-base-image"] == (Level.WARN, 1)
    assert found["dockerfile-update-alone"] == (Level.WARN, 3)
    assert found["dockerfile-download-piped-to-shell"] == (Level.WARN, 4)
    assert found["dockerfile-add"] == (Level.WARN, 5)
    assert found["dockerfile-root-user"] == (Level.WARN, 7)
    assert found["dockerfile-sudo-used"] == (Level.WARN, 8)
    assert found["dockerfile-setuid-file"][0] is Level.WARN
    assert found["dockerfile-world-writable-file"][0] is Level.WARN
    assert found["dockerfile-volume-on-system-directory"] == (Level.WARN, 9)
    assert found["dockerfile-unpinned-base-image"][0] is Level.INFO
    assert found["dockerfile-healthcheck-missing"][0] is Level.INFO


@pytest.mark.parametrize(
    "line", [b"ADD https://x.example/a.tgz /", b"ADD a.tar.gz /", b"ADD $WHAT /"]
)
def test_add_is_right_where_something_is_fetched_or_unpacked(line: bytes) -> None:
    assert "dockerfile-add" not in judged(b"FROM a:1\n" + line + b"\n")


def test_what_the_file_asks_to_skip_is_skipped() -> None:
    assert "dockerfile-root-user" not in judged(b"# check=skip=RootUser\n" + BAD)


def test_a_file_that_cannot_be_read_is_a_finding_and_the_others_go_on() -> None:
    broken = DockerfileBody(path="broken", content=b"FROM a:1\nNONSENSE x\n")
    bad = DockerfileBody(path="bad", content=BAD)

    found = dockerfile.judge([broken, bad])

    (item,) = found["dockerfile-unreadable"]
    assert (item.subject, item.level, item.line) == ("broken", Level.FAIL, 2)
    assert found["dockerfile-root-user"][0].subject == "bad"


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(InvalidError, match="no Dockerfile"):
        dockerfile.judge([])
