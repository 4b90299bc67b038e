"""Packages of Python and of Node.js, wherever in an image they were installed.

Python: ``*.dist-info/METADATA``, ``*.egg-info/PKG-INFO`` and lone ``*.egg-info`` files. Node.js:
``node_modules/NAME/package.json`` and the lock file that npm leaves in ``node_modules``.

Not for: files that only say what would be installed (requirements, locks beside the sources).
"""

from __future__ import annotations

import json
import re

from tare.build.sbom.inventory import FILE_MAX, Files, Inventory, Kind, Package, clean


def collect(files: Files, inventory: Inventory) -> None:
    """Add all packages of languages to *inventory*."""
    for here, listed in files.walk():
        for name, directory in listed:
            path = here + b"/" + name if here else name
            if name.endswith(b".dist-info") and directory:
                _python(files, inventory, path + b"/METADATA")
            elif name.endswith(b".egg-info"):
                _python(files, inventory, path + b"/PKG-INFO" if directory else path)
        if here.rpartition(b"/")[2] == b"node_modules":
            _node(files, inventory, here, listed)


def _python(files: Files, inventory: Inventory, path: bytes) -> None:
    text = files.text(path)
    if text is None:
        return
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break  # the description follows
        name, colon, value = line.partition(":")
        if colon and name and name[0] not in " \t":
            fields.setdefault(name.lower(), value.strip())
    name = re.sub(r"[-_.]+", "-", clean(fields.get("name", ""))).lower()
    license = fields.get("license-expression") or fields.get("license", "")
    inventory.add(
        Package(
            kind=Kind.PYPI,
            name=name,
            version=clean(fields.get("version", "")),
            license=clean(license) if license != "UNKNOWN" else "",
            supplier=clean(fields.get("author", "")),
            where=clean("/" + path.decode("utf-8", "replace")),
        )
    )


def _node(
    files: Files, inventory: Inventory, here: bytes, listed: list[tuple[bytes, bool]]
) -> None:
    sums = _integrity(files, here)
    for name, directory in listed:
        if not directory or name.startswith(b"."):
            continue
        inner = [name]
        if name.startswith(b"@"):
            inner = [name + b"/" + each for each, deep in files.names(here + b"/" + name) if deep]
        for each in inner:
            _npm(files, inventory, here + b"/" + each + b"/package.json", sums)


def _npm(files: Files, inventory: Inventory, path: bytes, sums: dict[str, str]) -> None:
    found = _object(files.read(path))
    license = found.get("license")
    if isinstance(license, dict):
        license = license.get("type")
    name, version = clean(found.get("name")), clean(found.get("version"))
    author = found.get("author")
    inventory.add(
        Package(
            kind=Kind.NPM,
            name=name,
            version=version,
            license=clean(license),
            supplier=clean(author.get("name") if isinstance(author, dict) else author),
            integrity=sums.get(f"{name}@{version}", ""),
            where=clean("/" + path.decode("utf-8", "replace")),
        )
    )


def _integrity(files: Files, here: bytes) -> dict[str, str]:
    """``NAME@VERSION`` to its checksum, as npm noted it when it installed."""
    listed = _object(files.read(here + b"/.package-lock.json", FILE_MAX)).get("packages")
    found: dict[str, str] = {}
    for path, entry in listed.items() if isinstance(listed, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("integrity"), str):
            name = path.rpartition("node_modules/")[2]
            found[f"{clean(name)}@{clean(entry.get('version'))}"] = clean(entry["integrity"])
    return found


def _object(content: bytes | None) -> dict[str, object]:
    if content is None:
        return {}
    try:
        found: object = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
