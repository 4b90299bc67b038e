"""Docker's words for pulls and pushes, and the platforms it writes."""

from __future__ import annotations

import pytest

from tare.errors import InvalidError
from tare.image.registry.download import Phase, Step
from tare.image.registry.pull import LayerKept, LayerNotice, Notice
from tare.image.registry.push import Pushed, PushNotice, PushPhase
from tare.model.digest import Digest
from tare.model.oci import Platform
from tare.wire import registry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/arm64", Platform("linux", "arm64", "v8")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
    ],
)
def test_platforms(text: str, expected: Platform | None) -> None:
    assert registry.platform(text) == expected


@pytest.mark.parametrize("text", ["linux", "a/b/c/d", "linux/", "/amd64", "lin ux/amd64", "a/../b"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="invalid platform"):
        registry.platform(text)


def test_the_lines_of_a_pull() -> None:
    lines = registry.PullLines()

    said = [
        line
        for told in (
            Notice("Pulling from a", "1"),
            LayerKept("kept"),
            LayerNotice("x", Step(Phase.WAITING)),
            LayerNotice("x", Step(Phase.DOWNLOADING, 512, 1024)),
            LayerNotice("x", Step(Phase.VERIFYING, 1024, 1024)),
            LayerNotice("x", Step(Phase.DONE, 1024, 1024)),
        )
        for line in lines.of(told)
    ]

    assert [line["status"] for line in said] == [
        "Pulling from a", "Already exists", "Pulling fs layer", "Downloading",
        "Verifying Checksum", "Download complete", "Extracting", "Pull complete",
    ]  # fmt: skip
    assert said[0] == {"status": "Pulling from a", "id": "1"}
    assert said[3] == {
        "status": "Downloading",
        "progressDetail": {"current": 512, "total": 1024},
        "progress": "[=========================>                         ]     512B/1.024kB",
        "id": "x",
    }
    assert said[-1] == {"status": "Pull complete", "progressDetail": {}, "id": "x"}


def test_a_layer_that_somebody_else_fetched_is_told_whole() -> None:
    said = registry.PullLines().of(LayerNotice("x", Step(Phase.DONE, 1, 1)))

    assert [line["status"] for line in said] == ["Download complete", "Extracting", "Pull complete"]


def test_the_lines_of_a_push() -> None:
    lines = [registry.push_line(PushNotice("x", phase, 1, 2, "other")) for phase in PushPhase]

    assert [line["status"] for line in lines] == [
        "Preparing", "Pushing", "Pushed", "Layer already exists", "Mounted from other",
    ]  # fmt: skip
    digest = Digest.of(b"")
    assert registry.pushed(Pushed("1", digest, 3)) == {
        "progressDetail": {},
        "aux": {"Tag": "1", "Digest": str(digest), "Size": 3},
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_234_567, "1.235MB"), (10**12, "1TB")],
)
def test_sizes(value: int, text: str) -> None:
    assert registry.size(value) == text
