"""Section 4 of the CIS Docker Benchmark, and what tare adds on images (T.4). Pure data."""

from __future__ import annotations

from functools import partial
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check, cis

_cis = partial(cis, Scope.IMAGE)
_own = partial(cis, Scope.IMAGE, level=0)

CHECKS: Final[tuple[Check, ...]] = (
    _cis(
        "4.1", "image-user", "Ensure a user for the container has been created",
        "What runs as root breaks out as root, where the other walls fail.",
        "Make a user in the Dockerfile and name it by number: USER 1000.",
        also="DL3002 DS-0002 CIS-DI-0001",
    ),
    _cis(
        "4.2", "image-trusted-base", "Ensure that containers use only trusted base images",
        "Whoever made the base image decides what else is in yours.",
        "Take images that are signed (`tare trust`), or vouch for the digest: tare trust vouch "
        "IMAGE.",
        scored=False, also="CIS-DI-0002",
    ),
    _cis(
        "4.3", "image-packages",
        "Ensure that unnecessary packages are not installed in the container",
        "A compiler, an editor or a network tool is what an intruder would install next.",
        "Build in one stage and copy what is needed into another; install with "
        "--no-install-recommends.",
        scored=False, also="CIS-DI-0003",
    ),
    _cis(
        "4.4", "image-age", "Ensure images are scanned and rebuilt to include security patches",
        "An image keeps the holes of the day it was made on.",
        "Build it again with --pull --no-cache; scan it with --vulnerabilities FILE.",
        scored=False, also="CIS-DI-0004",
    ),
    _cis(
        "4.5", "image-content-trust", "Ensure Content trust for Docker is Enabled",
        "Without it any image that has the right name is used, whoever made it.",
        "tare trust on",
        level=2, also="CIS-DI-0005",
    ),
    _cis(
        "4.6", "image-healthcheck",
        "Ensure that HEALTHCHECK instructions have been added to container images",
        "Without a check only the end of the process tells that a service has failed.",
        "Add HEALTHCHECK to the Dockerfile.",
        also="DL3057 DS-0026 CIS-DI-0006",
    ),
    _cis(
        "4.7", "image-update-alone",
        "Ensure update instructions are not use alone in the Dockerfile",
        "A list of packages in a layer of its own is cached and gets old; what is installed from "
        "it later is old too.",
        "Put update and install into one RUN.",
        scored=False, also="DS-0017 CIS-DI-0007",
    ),
    _cis(
        "4.8", "image-setuid", "Ensure setuid and setgid permissions are removed",
        "Whoever runs a setuid program gets its owner's rights.",
        "RUN find / -xdev -perm /6000 -type f -exec chmod a-s {} +",
        scored=False, level=2, also="CIS-DI-0008",
    ),
    _cis(
        "4.9", "image-add", "Ensure that COPY is used instead of ADD in Dockerfiles",
        "ADD unpacks archives and fetches from the network, which is seldom meant.",
        "Write COPY; for downloads ADD --checksum=sha256:...",
        scored=False, also="DL3020 DS-0005 CIS-DI-0009",
    ),
    _cis(
        "4.10", "image-secrets", "Ensure secrets are not stored in Dockerfiles",
        "Everybody who has the image reads its variables and its history.",
        "Use RUN --mount=type=secret, and take back the secret that was seen.",
        scored=False, also="DL3064 DS-0031 CIS-DI-0010",
    ),
    _cis(
        "4.11", "image-verified-packages", "Ensure only verified packages are installed",
        "A package that nothing verified is whatever the network sent.",
        "Leave the verification on, and give the builder the keys of its sources.",
        scored=False, level=2, also="CIS-DI-0011",
    ),
    _cis(
        "- 4.12", "image-signed", "Ensure all signed artifacts are validated",
        "A signature that nobody checks protects nobody.",
        "tare trust on, and a policy that names who may sign what.",
        scored=False,
    ),
    _own(
        "T.4.1", "image-vulnerabilities",
        "Ensure that the image has no packages with known vulnerabilities",
        "What is known to be broken is tried first.",
        "Build the image again on a base that has the corrected packages.",
    ),
    _own(
        "T.4.2", "image-accounts",
        "Ensure that no account of the image lacks a password or shares its id",
        "Any process that can log in is that account.",
        "Lock it in the Dockerfile: RUN passwd -l USER.",
        also="DKL-LI-0001 DKL-LI-0002",
    ),
    _own(
        "T.4.3", "image-world-writable",
        "Ensure that the image has no files that everybody may write",
        "Any process in the container can change what another one runs.",
        "RUN chmod o-w FILE; directories for all need the sticky bit (chmod 1777).",
        scored=False,
    ),
    _own(
        "T.4.4", "image-sudo", "Ensure that sudo is not installed in the image",
        "sudo is a setuid program for people; a container starts as the user it needs.",
        "Take sudo out of the image, and use USER.",
        scored=False, also="DL3004 DS-0010 DKL-DI-0001",
    ),
    _own(
        "T.4.5", "image-volumes", "Ensure that no volume covers a directory of the system",
        "A volume there hides what the image has and keeps it out of updates.",
        "Declare volumes for data only.",
        scored=False, also="DKL-DI-0002",
    ),
    _own(
        "T.4.6", "image-secret-files", "Ensure that no file of the image holds a secret",
        "A file in a layer is read by everybody who has the image, deleted later or not.",
        "Use RUN --mount=type=secret, keep the file out with .dockerignore, and take back the "
        "secret that was seen.",
        also="CIS-DI-0010",
    ),
)  # fmt: skip
