"""Go templates, as far as --format uses them.

Actions, pipelines, variables, if/else/with/range, comparisons, printf and Docker's own functions
(json, split, join, lower, upper, title, pad, truncate). Nested template definitions are not here:
a format of one line has no use for them.
"""

from __future__ import annotations

from tare.client import document
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from tare.client.document import Json

    Node: TypeAlias = "tuple[str, object, object, object]"

_SPACE = " \t\r\n"
_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "r": "\r", "'": "'", "a": "\a", "b": "\b"}
_LOOP_LIMIT = 1_000_000


def _bad(sentence: str) -> InvalidError:
    return InvalidError(
        f"template parsing error: {sentence}",
        hint="Formats are Go templates, for example --format '{{.Names}}' or --format json.",
    )


class _Leave(Exception):
    """break or continue inside a range."""


class Template:
    """A parsed template; ``render`` applies it to a document."""

    __slots__ = ("_nodes",)

    def __init__(self, source: str) -> None:
        """Parse *source*; InvalidError names what is wrong with it."""
        parser = _Parser(_pieces(source))
        self._nodes = parser.block(())[0]

    def render(self, data: Json) -> str:
        """The text for *data*; InvalidError when it has not what the template asks for."""
        run = _Run(data)
        run.block(self._nodes, data)
        return "".join(run.out)


def _pieces(source: str) -> list[tuple[bool, str]]:
    """Split into text (False) and actions (True), trim markers applied."""
    pieces: list[tuple[bool, str]] = []
    trim = False
    while True:
        text, opened, source = source.partition("{{")
        if trim:
            text = text.lstrip(_SPACE)
        if not opened:
            pieces.append((False, text))
            return pieces
        end = _action_end(source)
        action, source = source[:end], source[end + 2 :]
        if action.startswith("-") and action[1:2] in _SPACE and len(action) > 1:
            text, action = text.rstrip(_SPACE), action[1:]
        trim = action.endswith("-") and action[-2:-1] in _SPACE and len(action) > 1
        action = (action[:-1] if trim else action).strip(_SPACE)
        pieces.append((False, text))
        if action.startswith("/*") and action.endswith("*/"):
            continue
        pieces.append((True, action))


def _action_end(source: str) -> int:
    quote, at = "", 0
    while at < len(source):
        letter = source[at]
        if quote:
            if letter == "\\" and quote == '"':
                at += 1
            elif letter == quote:
                quote = ""
        elif letter in "\"`'":
            quote = letter
        elif source.startswith("}}", at):
            return at
        at += 1
    raise _bad("template: :1: unclosed action")


def _words(action: str) -> list[str]:
    words: list[str] = []
    at = 0
    while at < len(action):
        letter = action[at]
        start = at
        if letter in _SPACE:
            while at < len(action) and action[at] in _SPACE:
                at += 1
            words.append(" ")
        elif letter in '"`':
            at += 1
            while at < len(action) and action[at] != letter:
                at += 2 if action[at] == "\\" and letter == '"' else 1
            at += 1
            words.append(action[start:at])
        elif letter in "(|),=":
            at += 1
            words.append(letter)
        elif action.startswith(":=", at):
            at += 2
            words.append(":=")
        elif letter in ".$-+" or letter in _WORD:
            at += 1
            while at < len(action) and (action[at] in _WORD or action[at] == "."):
                # A field after a closed word starts its own word: .A.B is .A then .B
                if action[at] == "." and not action[start].isdigit() and action[start] not in "-+":
                    break
                at += 1
            words.append(action[start:at])
        else:
            raise _bad(f"template: :1: unexpected {letter!r} in {{{{{action}}}}}")
    return words


class _Parser:
    """Makes nodes (kind, a, b, c) of pieces: text, out, set, if, with, range, break, continue."""

    def __init__(self, pieces: list[tuple[bool, str]]) -> None:
        self.pieces = pieces
        self.at = 0

    def block(self, ends: tuple[str, ...]) -> tuple[list[Node], str]:
        nodes: list[Node] = []
        while self.at < len(self.pieces):
            is_action, text = self.pieces[self.at]
            self.at += 1
            if not is_action:
                if text:
                    nodes.append(("text", text, None, None))
                continue
            word = text.split(None, 1)[0] if text else ""
            if word in ends:
                return nodes, text
            nodes.append(self.action(word, text))
        if ends:
            raise _bad("template: :1: unexpected EOF")
        return nodes, ""

    def action(self, word: str, text: str) -> Node:
        if word in ("if", "with", "range"):
            names, pipe = _Pipe(_words(text[len(word) :].strip())).declaration()
            body, ended = self.block(("end", "else"))
            other: list[Node] = []
            if ended != "end":
                rest = ended[4:].strip()
                if rest:  # {{else if X}} is an if inside the else, closed by the same end
                    other = [self.action(rest.split(None, 1)[0], rest)]
                else:
                    other, _ = self.block(("end",))
            return (word, (names, pipe), body, other)
        if word in ("break", "continue"):
            return (word, None, None, None)
        if word in ("define", "template", "block"):
            raise _bad(f"template: :1: {word} is not supported in a format")
        if word in ("end", "else"):
            raise _bad(f"template: :1: unexpected {{{{{word}}}}}")
        if not text:
            raise _bad("template: :1: missing value for command")
        names, pipe = _Pipe(_words(text)).declaration()
        return ("set" if names else "out", (names, pipe), None, None)


class _Pipe:
    """Parses one pipeline: commands separated by |, each a list of operands."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    def declaration(self) -> tuple[list[str], list[object]]:
        words = [word for word in self.words if word != " "]
        names: list[str] = []
        if words and words[0].startswith("$"):
            at = 1
            while at + 1 < len(words) and words[at] == "," and words[at + 1].startswith("$"):
                at += 2
            if at < len(words) and words[at] in (":=", "="):
                names = [word for word in words[:at] if word != ","]
                while self.words[self.at] not in (":=", "="):
                    self.at += 1
                self.at += 1
        pipe = self.pipeline()
        if self.at < len(self.words):
            raise _bad(f"template: :1: unexpected {self.words[self.at]!r}")
        return names, pipe

    def pipeline(self) -> list[object]:
        commands: list[object] = []
        while True:
            operands = self.command()
            if not operands:
                raise _bad("template: :1: missing value for command")
            commands.append(operands)
            if self.at >= len(self.words) or self.words[self.at] != "|":
                return commands
            self.at += 1

    def command(self) -> list[object]:
        operands: list[object] = []
        joined = False  # whether the last operand may take a field: no blank between
        while self.at < len(self.words) and self.words[self.at] not in ("|", ")"):
            word = self.words[self.at]
            self.at += 1
            if word == " ":
                joined = False
                continue
            if word == "(":
                inner = self.pipeline()
                if self.at >= len(self.words):
                    raise _bad("template: :1: unclosed left paren")
                self.at += 1
                operands.append(("sub", inner, []))
            elif word.startswith(".") and len(word) > 1 and joined:
                last = operands[-1]
                assert isinstance(last, tuple)
                last[2].append(word[1:])
            else:
                operands.append(_operand(word))
            joined = True
        return operands


def _operand(word: str) -> tuple[str, object, list[str]]:
    if word == ".":
        return ("dot", None, [])
    if word.startswith("."):
        return ("dot", None, [word[1:]])
    if word.startswith("$"):
        return ("variable", word, [])
    if word.startswith("`"):
        return ("value", word[1:-1], [])
    if word.startswith('"'):
        return ("value", _unquoted(word), [])
    if word in ("true", "false"):
        return ("value", word == "true", [])
    if word == "nil":
        return ("value", None, [])
    if word[0].isdigit() or word[0] in "-+":
        try:
            return ("value", float(word) if "." in word else int(word, 0), [])
        except ValueError:
            raise _bad(f"template: :1: bad number syntax: {word!r}") from None
    if word not in FUNCTIONS and word not in ("and", "or"):
        raise _bad(f'template: :1: function "{word}" not defined')
    return ("function", word, [])


def _unquoted(word: str) -> str:
    if len(word) < 2 or not word.endswith('"'):
        raise _bad("template: :1: unterminated quoted string")
    body, out, at = word[1:-1], "", 0
    while at < len(body):
        if body[at] == "\\" and at + 1 < len(body):
            at += 1
            out += _ESCAPES.get(body[at], "\\" + body[at])
        else:
            out += body[at]
        at += 1
    return out


class _Run:
    """One rendering: output and variables."""

    def __init__(self, data: Json) -> None:
        self.out: list[str] = []
        self.variables: dict[str, Json] = {"$": data}

    def block(self, nodes: list[Node], dot: Json) -> None:
        for kind, a, body, other in nodes:
            if kind == "text":
                assert isinstance(a, str)
                self.out.append(a)
                continue
            if kind in ("break", "continue"):
                raise _Leave(kind)
            assert isinstance(a, tuple)
            names, pipe = a
            value = self.pipeline(pipe, dot)
            if kind == "out":
                self.out.append(printed(value))
            elif kind == "set":
                self.variables[names[0]] = value
            else:
                assert isinstance(body, list)
                assert isinstance(other, list)
                self.branch(kind, names, value, (body, other), dot)

    def branch(
        self,
        kind: str,
        names: list[str],
        value: Json,
        blocks: tuple[list[Node], list[Node]],
        dot: Json,
    ) -> None:
        body, other = blocks
        if kind == "range":
            pairs = _pairs(value)
            if not pairs:
                self.block(other, dot)
            for key, each in pairs:
                if names:
                    self.variables[names[-1]] = each
                if len(names) > 1:
                    self.variables[names[0]] = key
                try:
                    self.block(body, each)
                except _Leave as leave:
                    if leave.args[0] == "break":
                        break
            return
        if names:
            self.variables[names[0]] = value
        if truth(value):
            self.block(body, value if kind == "with" else dot)
        else:
            self.block(other, dot)

    def pipeline(self, commands: list[list[tuple[str, object, list[str]]]], dot: Json) -> Json:
        value: Json = None
        for at, operands in enumerate(commands):
            extra = [value] if at else []
            value = self.command(operands, dot, extra)
        return value

    def command(
        self, operands: list[tuple[str, object, list[str]]], dot: Json, extra: list[Json]
    ) -> Json:
        kind, what, fields = operands[0]
        if kind == "function":
            assert isinstance(what, str)
            if what in ("and", "or"):
                return self.shortcut(what, operands[1:], dot, extra)
            arguments = [self.operand(each, dot) for each in operands[1:]] + extra
            value = _called(what, arguments)
            return _fields(value, fields)
        # Docker's rows have one method: {{.Label "key"}}
        if fields and fields[-1] == "Label" and len(operands) > 1:
            labels = printed(_fields(self.operand((kind, what, fields[:-1]), dot), ["Labels"]))
            key = printed(self.operand(operands[1], dot))
            pairs = (pair.partition("=") for pair in labels.split(","))
            return next((value for name, _, value in pairs if name == key), "")
        if len(operands) > 1 or extra:
            raise _bad("template: :1: can't give argument to non-function")
        return self.operand(operands[0], dot)

    def shortcut(
        self,
        word: str,
        operands: list[tuple[str, object, list[str]]],
        dot: Json,
        extra: list[Json],
    ) -> Json:
        value: Json = None
        for each in operands:
            value = self.operand(each, dot)
            if truth(value) == (word == "or"):
                return value
        return extra[0] if extra else value

    def operand(self, operand: tuple[str, object, list[str]], dot: Json) -> Json:
        kind, what, fields = operand
        value: Json
        if kind == "dot":
            value = dot
        elif kind == "variable":
            assert isinstance(what, str)
            if what not in self.variables:
                raise _bad(f'template: :1: undefined variable "{what}"')
            value = self.variables[what]
        elif kind == "sub":
            assert isinstance(what, list)
            value = self.pipeline(what, dot)
        elif kind == "function":
            assert isinstance(what, str)
            value = _called(what, [])
        else:
            value = what  # type: ignore[assignment]  # made by _operand: a literal
        return _fields(value, fields)


def _fields(value: Json, names: list[str]) -> Json:
    for name in names:
        if value is None:
            raise _bad(f'template: :1: nil has no field "{name}"')
        if not isinstance(value, dict):
            raise _bad(f'template: :1: can\'t evaluate field "{name}" of {printed(value)[:40]!r}')
        if name not in value:
            from tare.client.options import nearest

            near = nearest(name, value)
            raise InvalidError(
                f'template parsing error: template: :1: map has no entry for key "{name}"',
                hint=f"Did you mean .{near}?" if near else "Look at the keys with --format json.",
            )
        value = value[name]
    return value


def _pairs(value: Json) -> list[tuple[Json, Json]]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [(key, value[key]) for key in sorted(value)]
    if isinstance(value, list):
        return list(enumerate(value))
    if isinstance(value, int) and 0 <= value <= _LOOP_LIMIT:
        return [(at, at) for at in range(value)]
    raise _bad(f"template: :1: range can't iterate over {printed(value)[:40]}")


def truth(value: Json) -> bool:
    """What Go holds for true: not false, zero, nil or empty."""
    return bool(value)


def printed(value: Json) -> str:
    """What fmt.Print makes of *value*."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_inner(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_inner(each) for each in value) + "]"
    return str(value)


def _inner(value: Json) -> str:
    return "<nil>" if value is None else printed(value)


def _called(name: str, arguments: list[Json]) -> Json:
    try:
        return FUNCTIONS[name](*arguments)
    except InvalidError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise _bad(f"template: :1: error calling {name}: {error}") from None


def _index(value: Json, *keys: Json) -> Json:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(printed(key))
        elif isinstance(value, (list, str)) and isinstance(key, int):
            if not 0 <= key < len(value):
                raise ValueError(f"index out of range: {key}")
            value = value[key]
        elif value is None:
            raise ValueError("index of untyped nil")
        else:
            raise ValueError(f"can't index item of {printed(value)[:40]}")
    return value


def _slice(value: Json, first: int = 0, end: int = -1) -> Json:
    if not isinstance(value, (list, str)):
        raise ValueError("can't slice that")
    return value[first : end if end >= 0 else len(value)]


def _printf(form: str, *arguments: Json) -> str:
    out, rest, left = "", form, list(arguments)
    while True:
        text, percent, rest = rest.partition("%")
        out += text
        if not percent:
            return out
        end = next((at for at, c in enumerate(rest) if c.isalpha() or c == "%"), -1)
        if end < 0:
            return out + "%!(NOVERB)"
        spec, verb, rest = rest[:end], rest[end], rest[end + 1 :]
        if verb == "%":
            out += "%"
        elif not left:
            out += f"%!{verb}(MISSING)"
        else:
            out += _verb(spec, verb, left.pop(0))


def _verb(spec: str, verb: str, value: Json) -> str:
    if verb in "vst":
        return f"%{spec}s" % printed(value)
    if verb == "q":
        return f"%{spec}s" % document.compact(printed(value))
    if verb in "dxXoc" and isinstance(value, (int, float)):
        return f"%{spec}{verb}" % int(value)
    if verb in "feEgG" and isinstance(value, (int, float)):
        return f"%{spec}{verb}" % value
    return f"%!{verb}({printed(value)})"


def _order(name: str) -> Callable[[Json, Json], bool]:
    def compare(a: Json, b: Json) -> bool:
        numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        if not numbers and not (isinstance(a, str) and isinstance(b, str)):
            raise ValueError("incompatible types for comparison")
        low, same = a < b, a == b  # type: ignore[operator]  # both numbers or both strings
        return {"lt": low, "le": low or same, "gt": not (low or same), "ge": not low}[name]

    return compare


def _json(value: Json) -> str:
    return document.compact(value, ordered=False)


def _title(value: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in value.split(" "))


def _length(value: Json) -> int:
    if isinstance(value, (str, list, dict)):
        return len(value.encode()) if isinstance(value, str) else len(value)
    raise ValueError(f"len of {printed(value)[:40]}")


FUNCTIONS: dict[str, Callable[..., Json]] = {
    "json": _json,
    "split": lambda text, by: list(text.split(by)) if by else list(text),
    "join": lambda words, by: by.join(printed(word) for word in words or []),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": _title,
    "pad": lambda text, before, after: " " * before + text + " " * after,
    "truncate": lambda text, size: text[:size],
    "println": lambda *values: " ".join(printed(value) for value in values) + "\n",
    "print": lambda *values: "".join(printed(value) for value in values),
    "printf": _printf,
    "index": _index,
    "slice": _slice,
    "len": _length,
    "not": lambda value: not truth(value),
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda a, b: a != b,
    "lt": _order("lt"),
    "le": _order("le"),
    "gt": _order("gt"),
    "ge": _order("ge"),
}
