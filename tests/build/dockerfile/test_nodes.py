"""Nodes against the published vectors of the reference parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tare.build.dockerfile.nodes import Node, Tree, decode, read
from tare.build.dockerfile.source import DockerfileError

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "dockerfile-parser.jsonl")
    .read_text()
    .splitlines()
]
_NAMED: Final = {'"': '"', "\\": "\\", "\n": "n", "\t": "t", "\b": "b", "\f": "f", "\r": "r"}


def nodes(text: str) -> list[Node]:
    return list(read(Tree(decode(text.encode(), "Dockerfile"))))


def _quoted(text: str) -> str:
    """As Go quotes it."""
    letters = (
        f"\\{_NAMED[c]}" if c in _NAMED else c if c.isprintable() else f"\\x{ord(c):02x}"
        for c in text
    )
    return f'"{"".join(letters)}"'


def _dumped(node: Node) -> str:
    parts = [node.keyword.lower()]
    if node.flags:
        parts.append(f"[{' '.join(map(_quoted, node.flags))}]")
    parts += map(_quoted, node.arguments)
    if node.child is not None:
        parts.append(_dumped(node.child))
    return f"({' '.join(parts)})"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_a_file_divides_as_in_the_reference_parser(vector: dict[str, Any]) -> None:
    text, want = vector["q"]["s"], vector["want"]
    if "err" in want:
        try:
            found = nodes(text)
        except DockerfileError:
            return
        assert not found  # an empty file is refused by `parse`
        return

    assert "\n".join(map(_dumped, nodes(text))) == want["ok"]["ast"]


def test_lines_are_those_of_the_whole_instruction() -> None:
    text = "\n# c\nRUN a \\\n\n  # c\n  b\nRUN <<E\nx\nE\nRUN c\n"

    lines = [(node.place.lines.first, node.place.lines.last) for node in nodes(text)]

    assert lines == [(3, 6), (7, 9), (10, 10)]


@pytest.mark.parametrize(
    ("text", "names", "contents", "expand"),
    [
        ("RUN <<EOF\na\nb\nEOF\n", ["EOF"], ["a\nb\n"], [True]),
        ("RUN <<'E O F'\na\nE O F\n", ["E O F"], ["a\n"], [False]),
        ('RUN <<"E"\na\nE\n', ["E"], ["a\n"], [False]),
        ("RUN <<-E\n\ta\n\t\tE\n", ["E"], ["\ta\n"], [True]),
        ("RUN cat <<A <<B\n1\nA\n2\nB\n", ["A", "B"], ["1\n", "2\n"], [True, True]),
        ("RUN 3<<E cat\nx\nE\n", ["E"], ["x\n"], [True]),
        ("COPY <<a <<b /\n1\na\n2\nb\n", ["a", "b"], ["1\n", "2\n"], [True, True]),
        ("ONBUILD RUN <<E\nx\nE\n", ["E"], ["x\n"], [True]),
        ("RUN <<E\r\nx\r\nE\r\n", ["E"], ["x\r\n"], [True]),
        ("RUN <<E\n# not a comment\nRUN y \\\nE\n", ["E"], ["# not a comment\nRUN y \\\n"], [True]),
    ],
)
def test_here_documents_are_taken_whole(
    text: str, names: list[str], contents: list[str], expand: list[bool]
) -> None:
    (node,) = nodes(text)

    assert [document.name for document in node.heredocs] == names
    assert [document.content for document in node.heredocs] == contents
    assert [document.expand for document in node.heredocs] == expand


@pytest.mark.parametrize(
    "text", ["RUN cat <<<word", 'RUN ["a", "<<E"]', "ENV a=<<E", 'RUN echo "<<E"', "RUN a << b"]
)
def test_what_looks_like_a_here_document_and_is_none(text: str) -> None:
    if text == "RUN a << b":
        with pytest.raises(DockerfileError, match="unterminated heredoc"):
            nodes(text)
        return

    assert nodes(text)[0].heredocs == ()


@pytest.mark.parametrize(
    ("text", "escape"),
    [
        ("# escape=`\nRUN x", "`"),
        ("#ESCAPE = `\nRUN x", "`"),
        ("# syntax=a\n# escape=`\nRUN x", "`"),
        ("\n# escape=`\nRUN x", "\\"),
        ("# a comment\n# escape=`\nRUN x", "\\"),
        ("# unknown=1\n# escape=`\nRUN x", "\\"),
        ("\ufeff# escape=`\nRUN x", "`"),
    ],
)
def test_directives_stand_at_the_top_alone(text: str, escape: str) -> None:
    tree = Tree(decode(text.encode(), "Dockerfile"))
    list(read(tree))

    assert tree.escape == escape


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# escape=x\nRUN y", "invalid escape token 'x'"),
        ("# escape=`\n# escape=`\nRUN y", "only one escape parser directive can be used"),
        ("CMD [1]", "arrays must be comprised of strings only"),
        ("RUN <<E\nx", "unterminated heredoc"),
        ("ENV a=b c", 'can\'t find = in "c"'),
        ("LABEL a", "LABEL must have two arguments"),
    ],
)
def test_what_cannot_be_divided_is_refused_with(text: str, reason: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        nodes(text)

    assert reason in caught.value.reason


def test_halves_of_letters_in_json_are_replaced() -> None:
    (node,) = nodes('CMD ["\\ud800", "\\ud83d\\ude00"]')

    assert node.arguments == ("\N{REPLACEMENT CHARACTER}", "\N{GRINNING FACE}")


def test_a_deep_array_is_a_command_for_the_shell() -> None:
    (node,) = nodes("CMD " + "[" * 30_000)

    assert not node.json
