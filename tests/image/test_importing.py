"""The instructions of ``--change``."""

from __future__ import annotations

import pytest

from tare.errors import InvalidError
from tare.image.importing import apply_changes, blank_config
from tare.model import oci
from tare.model.oci import ImageConfig
from tare.model.spec import HealthCheck

BLANK = ImageConfig(architecture="amd64", os="linux", env=("A=1", "B=2"), cwd="/srv")


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ('CMD ["a", "b c"]', "cmd", ("a", "b c")),
        ("cmd a b", "cmd", ("/bin/sh", "-c", "a b")),
        ("ENTRYPOINT [ ]", "entrypoint", ()),
        ("ENTRYPOINT ['a']", "entrypoint", ("/bin/sh", "-c", "['a']")),
        ("ENV A=9 C='x y'", "env", ("A=9", "B=2", "C=x y")),
        ("ENV B x y", "env", ("A=1", "B=x y")),
        ('LABEL a=b "c d"="e f"', "labels", {"a": "b", "c d": "e f"}),
        ("EXPOSE 80 53/UDP", "exposed_ports", ("53/udp", "80/tcp")),
        ("USER 1000:1000", "user", "1000:1000"),
        ("VOLUME /a /b", "volumes", ("/a", "/b")),
        ('VOLUME ["/a b"]', "volumes", ("/a b",)),
        ("WORKDIR app/../x", "cwd", "/srv/x"),
        ("WORKDIR //x", "cwd", "/x"),
        ("STOPSIGNAL SIGINT", "stop_signal", "SIGINT"),
        ("ONBUILD RUN x", "on_build", ("RUN x",)),
        ('SHELL ["bash", "-c"]', "shell", ("bash", "-c")),
        ("HEALTHCHECK NONE", "health", HealthCheck(test=("NONE",))),
        (
            "HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=2 CMD true",
            "health",
            HealthCheck(
                test=("CMD-SHELL", "true"), interval_ns=90 * 10**9, timeout_ns=15 * 10**8, retries=2
            ),
        ),
    ],
)
def test_a_change_sets_what_it_says(change: str, field: str, value: object) -> None:
    changed = apply_changes(BLANK, [change])

    assert getattr(changed, field) == value
    assert getattr(oci.encode(changed), field) == value, "and survives being written"


@pytest.mark.parametrize(
    "change",
    [
        "RUN x",
        "FROM y",
        "CMD",
        "ENV A",
        "ENV =x",
        "LABEL a=b c",
        "LABEL 'a",
        "EXPOSE 0",
        "EXPOSE x",
        "STOPSIGNAL 99",
        "USER a b",
        "WORKDIR \0",
        "SHELL bash",
        "HEALTHCHECK x",
        "HEALTHCHECK CMD",
        "HEALTHCHECK --interval=5 CMD x",
        "HEALTHCHECK --what=1s CMD x",
        "ONBUILD ONBUILD x",
    ],
)
def test_a_change_that_makes_no_sense_is_refused_by_name(change: str) -> None:
    with pytest.raises(InvalidError):
        apply_changes(BLANK, [change])


def test_a_blank_configuration_knows_its_platform() -> None:
    assert blank_config(oci.Platform("linux", "arm64", "v8")).variant == "v8"
    assert oci.encode(blank_config()).args == ()
