"""Go templates: what Docker's comparison (test_same_as_docker) does not reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.client.document import Json
from tare.client.templates import Template
from tare.errors import InvalidError

DATA: dict[str, Json] = {
    "A": {"B": [1, 2, 3], "C": None, "D": 1.5, "E": {"x": "y"}},
    "T": True,
    "F": False,
    "S": "words of text",
    "N": 7,
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{.N}}", "7"),
        ("{{.A.B}}", "[1 2 3]"),
        ("{{.A.E}}", "map[x:y]"),
        ("{{.A.C}}", "<no value>"),
        ("{{if and .T (gt .N 6)}}yes{{end}}", "yes"),
        ("{{if .F}}a{{else if .T}}b{{else}}c{{end}}", "b"),
        ("{{range .A.B}}{{.}},{{else}}none{{end}}", "1,2,3,"),
        ("{{range .A.B}}{{if eq . 2}}{{break}}{{end}}{{.}}{{end}}", "1"),
        ("{{range .A.B}}{{if eq . 2}}{{continue}}{{end}}{{.}}{{end}}", "13"),
        ("{{range $k, $v := .A.E}}{{$k}}={{$v}}{{end}}", "x=y"),
        ("{{with $x := .S}}{{len $x}}{{end}}", "13"),
        ("{{$x := .N}}{{$x}}{{$x = 8}}{{$x}}", "78"),
        ("{{/* nothing */}}x", "x"),
        ("a {{- .N -}} b", "a7b"),
        ('{{ "}}" }}', "}}"),
        ("{{`raw\\n`}}", "raw\\n"),
        ("{{json .A.E}}", '{"x":"y"}'),
        ('{{.S | upper | printf "%.5s"}}', "WORDS"),
        ("{{index .A.B 0}} {{slice .S 0 5}}", "1 words"),
        ("{{or .F .N}} {{and .N .S}} {{not .T}}", "7 words of text false"),
        ("{{eq .N 1 7}} {{ne .N 7}} {{le .N 7}}", "true false true"),
        ('{{printf "%05.1f|%x|%v|%%" .A.D 255 .T}}', "001.5|ff|true|%"),
        ("{{(index .A.B 1)}}{{$.N}}", "27"),
        ("{{truncate .S 3}} {{println .N}}", "wor 7\n"),
    ],
)
def test_rendering(source: str, text: str) -> None:
    assert Template(source).render(DATA) == text


@pytest.mark.parametrize(
    "source",
    ["{{", "{{.A", "{{end}}", "{{if .T}}", "{{nosuch .T}}", "{{.Nope}}", "{{.A.C.X}}", "{{.S.X}}",
     "{{index .A.B 9}}", "{{range .S}}{{end}}", "{{lt .S .N}}", "{{}}", "{{.A | }}", "{{(.A}}",
     '{{"open}}', "{{template \"x\"}}", "{{$nope}}", "{{else}}", "{{lower .N}}", "{{.N 1}}"],
)  # fmt: skip
def test_a_wrong_template_is_one_clear_error(source: str) -> None:
    with pytest.raises(InvalidError, match="template parsing error"):
        Template(source).render(DATA)


def test_a_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(InvalidError) as caught:
        Template("{{.Statsu}}").render({"Status": "x"})

    assert caught.value.hint == "Did you mean .Status?"


@given(st.text(alphabet='{}.$AB|()"`-=:, ifrangeend', max_size=40))
def test_any_source_renders_or_is_refused(source: str) -> None:
    try:
        Template(source).render(DATA)
    except InvalidError:
        pass
