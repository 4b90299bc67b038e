"""audit: checks of host, engine, images, workloads and Dockerfiles, and what they have found.

The daemon looks and judges; waivers, baselines, thresholds and formats are applied here, to the
report that it gives, so a report can be looked at again without an engine (--input).
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from tare.audit import catalogue, finding, fixing, standing
from tare.audit.finding import Level, Report
from tare.audit.formats import bench, junit, page, sarif, text
from tare.client import document
from tare.client.options import Command, Flags
from tare.client.tables import aligned, say, warn, write_out
from tare.client.transport import Daemon
from tare.errors import InvalidError, MissingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

REACHED = 2
"""The exit code when findings reach the threshold; 1 is an audit that could not be done."""
_FILE_MAX = 64 << 20
_FORMATS = ("text", "json", "bench-json", "sarif", "junit", "html")


def _run(daemon: Daemon, flags: Flags, words: list[str]) -> int:
    benchmark = catalogue.edition(flags.text("benchmark"))
    form = flags.text("format", "text")
    if form not in _FORMATS:
        raise InvalidError(f"--format takes {', '.join(_FORMATS)}")
    if flags.flag("list"):
        _list(benchmark)
        return 0
    if flags.flag("yes") and not flags.flag("fix"):
        raise InvalidError("--yes is for --fix")
    # Everything that can be wrong is read before the engine is bothered.
    threshold = None
    if flags.given("fail-on"):
        threshold = standing.Threshold.parse(flags.text("fail-on"), benchmark)
    waivers = []
    if path := flags.text("waivers"):
        content = _read(path).decode("utf-8", "replace")
        waivers = standing.waivers(content, path, benchmark)
    baseline = flags.text("baseline")
    known = finding.from_plain(document.decode(_read(baseline))) if baseline else None
    report = _report(daemon, flags, words)
    if known is not None:
        report = standing.compared(report, known)
    if waivers:
        report = standing.waived(report, waivers, datetime.fromtimestamp(time.time(), UTC).date())
    _write(flags, _rendered(report, form, flags))
    if flags.flag("fix") and not flags.flag("yes"):
        _plan(report)
    if threshold is None:
        return 0
    reached = threshold.reached(report)
    if reached:
        warn(f"tare: {len(reached)} findings reach the threshold {flags.text('fail-on')}")
    return REACHED if reached else 0


def _report(daemon: Daemon, flags: Flags, words: list[str]) -> Report:
    if path := flags.text("input"):
        if words:
            raise InvalidError("--input is a report already: nothing else can be named")
        return finding.from_plain(document.decode(_read(path)))
    return finding.from_plain(daemon.call("POST", "/tare/audit", _body(flags, words)))


def _body(flags: Flags, words: list[str]) -> dict[str, Json]:
    what, names = words[:1], words[1:]
    body: dict[str, Json] = {"What": [*what], "Benchmark": flags.text("benchmark")}
    if what == ["dockerfile"]:
        body["Dockerfiles"] = [_dockerfile(path) for path in names or ["."]]
    else:
        body["Names"] = [*names]
    for option, field in (
        ("check", "Checks"), ("exclude", "Exclude"), ("trusted-users", "TrustedUsers"),
    ):  # fmt: skip
        body[field] = [*_words(flags, option)]
    ports = _words(flags, "allow-ports")
    if not all(port.isascii() and port.isdigit() and int(port) < 65536 for port in ports):
        raise InvalidError("--allow-ports takes numbers of ports, as 80,443")
    body["AllowedPorts"] = [int(port) for port in ports]
    if flags.given("level"):
        body["Level"] = flags.number("level")
    if flags.given("max-age"):
        body["MaxAgeDays"] = flags.number("max-age")
    if path := flags.text("vulnerabilities"):
        body["Vulnerabilities"] = os.path.abspath(path)
    body["Fix"] = flags.flag("fix") and flags.flag("yes")
    return body


def _words(flags: Flags, option: str) -> list[str]:
    return [word for value in flags.list(option) for word in value.split(",") if word]


def _dockerfile(path: str) -> dict[str, Json]:
    """A Dockerfile, or the one of a directory, with the ignore file that a build would read."""
    file = os.path.join(path, "Dockerfile") if os.path.isdir(path) else path
    found: dict[str, Json] = {"Path": os.path.normpath(file), "Content": _base64(_read(file))}
    for ignore in (f"{file}.dockerignore", os.path.join(os.path.dirname(file), ".dockerignore")):
        if os.path.isfile(ignore):
            found["Ignore"] = _base64(_read(ignore))
            break
    return found


def _base64(content: bytes) -> str:
    from binascii import b2a_base64

    return b2a_base64(content, newline=False).decode("ascii")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _FILE_MAX:
        raise InvalidError(f"{path} is larger than {_FILE_MAX >> 20} MiB")
    return content


def _rendered(report: Report, form: str, flags: Flags) -> str:
    match form:
        case "json":
            return document.pretty(_json(finding.plain(report))) + "\n"
        case "bench-json":
            return document.pretty(_json(bench.document(report)), "  ") + "\n"
        case "sarif":
            return document.pretty(_json(sarif.document(report)), "  ") + "\n"
        case "junit":
            return junit.render(report)
        case "html":
            return page.render(report)
    colour = os.isatty(1) and not flags.given("output") and "NO_COLOR" not in os.environ
    colour = colour and not flags.flag("no-color")
    return text.render(report, colour=colour, remedies=flags.flag("remedies"))


def _json(value: object) -> Json:
    """The formats' values as those of the encoder: both are JSON's."""
    if isinstance(value, dict):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_json(one) for one in value]
    assert value is None or isinstance(value, (bool, int, float, str))
    return value


def _write(flags: Flags, content: str) -> None:
    raw = content.encode("utf-8", "replace")
    path = flags.text("output")
    if not path or path == "-":
        write_out(raw)
        return
    with open(path, "wb") as file:
        file.write(raw)


def _plan(report: Report) -> None:
    """What --fix would do; nothing is done without --yes."""
    fixes = fixing.proposed(report)
    if not fixes:
        warn("Nothing that was found can be changed safely.")
        return
    warn("These changes are safe; nothing was done yet. `--fix --yes` makes them:")
    for fix in fixes:
        warn(f"  {fixing.words(fix)}    # now {fix.old}")


def _list(benchmark: str) -> None:
    rows = [["NUMBER", "NAME", "SCOPE", "LEVEL", "SCORED", "TITLE"]]
    rows += [
        [
            catalogue.number(check, benchmark),
            check.name,
            str(check.scope),
            str(check.level or "-"),
            "yes" if check.scored else "no",
            check.title,
        ]
        for check in catalogue.ordered(benchmark)
    ]
    say(aligned(rows).rstrip("\n"))


_LEVELS = ", ".join(str(level).lower() for level in reversed(Level) if level is not Level.PASS)

COMMANDS = {
    "audit": Command(
        "[OPTIONS] [host|engine|image|workload|dockerfile|all] [NAME|PATH...]",
        "Check host, engine, images and workloads against the CIS Docker Benchmark",
        _run,
        {
            "allow-ports": ("", "strings", "Ports below 1024 that may be published"),
            "baseline": ("", "string", "Earlier report (json): only what is new counts"),
            "benchmark": ("", "string", "CIS Docker Benchmark 1.2 (default), 1.6, 1.7 or 1.8"),
            "check": ("c", "strings", "Only these checks: numbers, names, sections, level1"),
            "exclude": ("e", "strings", "Not these checks"),
            "fail-on": ("", "string", f"Exit with 2 on {_LEVELS}, or on checks like 5.4,level1"),
            "fix": ("", "bool", "Show the changes that are safe to make"),
            "format": ("", "string", "Print as text, json, bench-json, sarif, junit or html"),
            "input": ("", "string", "Show this report (json) instead of looking"),
            "level": ("", "int", "Highest profile level of the checks: 1 or 2"),
            "list": ("", "bool", "List all checks"),
            "max-age": ("", "int", "Days after which an image is old (default 90)"),
            "no-color": ("b", "bool", "Print without colours"),
            "output": ("o", "string", "Write to this file"),
            "remedies": ("p", "bool", "Say what to do about each finding"),
            "trusted-users": ("u", "strings", "Users who may control the engine"),
            "vulnerabilities": ("", "string", "OSV file, zip or directory, or Debian's tracker"),
            "waivers": ("", "string", "Waivers with an expiry date (TOML)"),
            "yes": ("y", "bool", "With --fix: make the changes"),
        },
        notes=(
            "Without a word everything but Dockerfiles is looked at. Containers and images can\n"
            "be named after workload and image, paths after dockerfile. Exit codes: 0, 1 if\n"
            "the audit could not be done, 2 if findings reach --fail-on."
        ),
    ),
}
