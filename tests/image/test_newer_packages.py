"""Newer packages of bootstrapped images: asked of the distribution's apt, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tare.errors import FailedError, MissingError
from tare.image import bootstrap
from tare.image.bootstrap import Recipe
from tare.image.newer_packages import PackageLists, recipe_of, sources
from tare.image.store import Image
from tare.model import oci
from tare.model.digest import Digest

real = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
OLD = (
    b"Package: bash\nStatus: install ok installed\nPriority: required\nArchitecture: all\n"
    b"Version: 1.0-1\n\n"
)
PLATFORM = oci.host_platform("x86_64")


@pytest.fixture
def lists() -> Iterator[PackageLists]:
    made = PackageLists()
    yield made
    made.close()


def image(recipe: Recipe) -> Image:
    config = bootstrap._config(recipe, "1.3.5", [("bash", "1.0-1")])
    layer = Digest("1" * 64)
    return Image(
        id=Digest("2" * 64),
        config=replace(config, diff_ids=(layer,)),
        layers=(layer,),
        tags=("debian:bookworm",),
        digests=(),
        size=1,
        created_ns=0,
    )


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.parse("debian:bookworm"),
        Recipe.parse("debian:bookworm-slim", packages=["curl", "jq"]),
        Recipe.parse("ubuntu:noble", variant="essential"),
        Recipe.parse("bookworm", mirror="http://mirror.example/debian"),
    ],
    ids=str,
)
def test_a_bootstrapped_image_tells_its_recipe(recipe: Recipe) -> None:
    assert recipe_of(image(recipe)) == recipe


def test_what_is_built_on_a_bootstrapped_image_is_none() -> None:
    made = image(Recipe.parse("bookworm"))
    layers = (*made.layers, Digest("3" * 64))

    assert recipe_of(replace(made, layers=layers)) is None


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("mirror", "http://x/[trusted=yes]"),
        ("mirror", "copy:/etc/shadow"),
        ("suite", "bookworm main\ndeb [trusted=yes] http://x ./"),
        ("suite", "-oDir::Bin=x"),
        ("requested", "-oDebug=1"),
    ],
)
def test_labels_that_are_no_recipe_are_none(label: str, value: str) -> None:
    made = image(Recipe.parse("bookworm"))
    labels = {**made.config.labels, bootstrap.LABELS + label: value}

    assert recipe_of(replace(made, config=replace(made.config, labels=labels))) is None


def test_every_source_is_signed_by_the_distribution_and_security_is_among_them() -> None:
    lines = sources(Recipe.parse("bookworm")).splitlines()

    assert all("[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" in o for o in lines)
    assert any("bookworm-security" in line for line in lines)
    assert len(sources(Recipe.parse("sid")).splitlines()) == 1


@real
@pytest.mark.attack("A33")
def test_a_mirror_that_is_not_signed_is_not_believed(
    lists: PackageLists, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("mirror")
    for path in (directory, directory.parent):
        path.chmod(0o755)
    packages = directory / "dists/bookworm/main/binary-amd64/Packages"
    packages.parent.mkdir(parents=True)
    packages.write_text("Package: bash\nVersion: 9.9\nArchitecture: all\nFilename: x\nSize: 1\n")
    (directory / "dists/bookworm/Release").write_text("Suite: bookworm\n")
    recipe = Recipe.parse("bookworm", mirror=f"file://{directory}")

    with pytest.raises((FailedError, MissingError)) as caught:
        lists.newer(recipe, OLD, PLATFORM)

    assert "signed" in f"{caught.value} {caught.value.hint}" or "keyring" in str(caught.value)


@real
def test_debian_says_what_is_newer(lists: PackageLists) -> None:
    try:
        found = lists.newer(Recipe.parse("bookworm"), OLD, PLATFORM)
    except (FailedError, MissingError) as error:
        pytest.skip(f"Debian's mirrors cannot be asked here: {error}")

    [(name, old, new)] = found
    assert (name, old) == ("bash", "1.0-1")
    assert new.startswith("5.")


def test_apt_reads_nothing_of_the_hosts_configuration(
    lists: PackageLists, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "apt-get"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$APT_CONFIG" "$SECRET" "$@" >> "$0.said"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SECRET", "hunter2")
    recipe = Recipe.parse("bookworm")
    if not recipe.distribution.keyring.exists():
        pytest.skip("Debian's keyring is not installed")

    assert lists.newer(recipe, OLD, PLATFORM) == []
    assert lists.newer(recipe, OLD, PLATFORM) == []

    said = (tmp_path / "apt-get.said").read_text()
    assert "hunter2" not in said
    assert said.count("update\n") == 1, "the lists of a round are fetched once"
    assert "/etc/apt" not in said
