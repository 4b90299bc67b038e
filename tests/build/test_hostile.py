"""Dockerfiles made to take long or to dig deep: they are read, advised on and expanded, or refused.

Each is some 50 kB, which takes well under a second; anything that grew with the square of that
would take many minutes.
"""

from __future__ import annotations

import time
from typing import Final

import pytest

from tare.build.checks import check
from tare.build.dockerfile import Arg, Env, Scope, expand, global_arguments, parse
from tare.errors import InvalidError
from tare.model.oci import Platform

HOST = Platform("linux", "amd64")
CONTINUED = "\\\n"
FILES: Final = {
    "a line continued": "RUN " + ("x " * 25_000 + CONTINUED),
    "quotes": "ENV a=" + "'\"'" * 12_000,
    "here-documents": "RUN " + "<<A " * 12_000 + "\n" + "A\n" * 12_000,
    "copied here-documents": "COPY " + "<<A " * 12_000 + "/\n" + "A\n" * 12_000,
    "an open here-document": "RUN " + "<<A " * 12_000 + "\n" + "x\n" * 12_000,
    "angles": "RUN " + "<" * 50_000,
    "angles and spaces": "RUN <<" + " " * 50_000 + "<",
    "nested variables": "ENV a=" + "${a:-" * 10_000,
    "replacements": "ENV a=" + "${a//b/cc}" * 5_000,
    "patterns": "ENV a=" + "${a##*?*?*?*?b}" * 3_000,
    "doubled variables": "ENV a=xx\n" + "ENV a=$a$a\n" * 4_000,
    "many variables": "".join(f"ENV v{n}=$v{n - 1} w=$u{n}\n" for n in range(2_000)),
    "many arguments": "ARG " + " ".join(f"a{n}=$a{n - 1}" for n in range(4_000)),
    "a deep array": "CMD " + "[" * 50_000,
    "flags": "COPY " + "--exclude=a " * 4_000 + "a b",
    "mounts": "RUN " + "--mount=target=/a " * 2_500 + "a",
    "one mount": "RUN --mount=" + "ro," * 15_000 + " a",
    "empty continuations": "RUN a\\\n" + "\n" * 50_000 + "b",
    "stages": "".join(f"FROM s{n - 1} AS s{n}\nCOPY --from=s{n - 1} a b\n" for n in range(900)),
    "commands": "RUN " + "a|b;'c'&&" * 5_000,
    "triggers": "ONBUILD " * 6_000,
    "ports": "EXPOSE " + "1-65535 " * 6_000,
    "a directive": "# check=" + ";" * 50_000,
    "comments": "# check=skip=a\n" * 3_000 + "RUN a",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_made_to_take_long_takes_no_longer_than_another(kind: str) -> None:
    began = time.process_time()

    try:
        dockerfile = parse(f"FROM a\n{FILES[kind]}\n".encode())
        check(dockerfile)
        arguments = global_arguments(dockerfile, {}, build=HOST, target=HOST)
        scope = Scope({"a": "ab" * 500}, arguments, {})
        for stage in dockerfile.stages:
            for instruction in stage.instructions:
                if isinstance(instruction, Arg):
                    scope.declare(instruction)
                elif isinstance(instruction, Env):
                    scope.set(instruction)
                else:
                    expand(instruction, scope.environment)
    except InvalidError:
        pass  # a clear refusal is as good

    assert time.process_time() - began < 30
