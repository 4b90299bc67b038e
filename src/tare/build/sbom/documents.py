"""An inventory as a document: CycloneDX 1.6 or SPDX 2.3, both JSON.

The same image gives the same bytes: times and identifiers are made of the image's own. Licences
are carried as the packages word them, because they rarely are SPDX expressions.

Not for: finding the packages (``inventory``).
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote

from tare import __version__
from tare.build.sbom.inventory import Inventory, Kind, Package, System
from tare.errors import InvalidError
from tare.model.digest import Digest

Json = dict[str, object]

_NAMESPACE: Final = uuid.UUID("6f0f4e7a-6c5e-5a0d-9b1e-3d1d7b1f6a52")
_SYSTEM_KINDS: Final = {Kind.DEB: "debian", Kind.APK: "alpine", Kind.RPM: ""}
_EPOCH: Final = re.compile(r"([0-9]+):(.*)")


class Format(StrEnum):
    """The forms of a bill of materials."""

    CYCLONEDX = "cyclonedx"
    SPDX = "spdx"

    @property
    def media_type(self) -> str:
        """What registries call it."""
        if self is Format.CYCLONEDX:
            return "application/vnd.cyclonedx+json"
        return "application/spdx+json"

    @classmethod
    def called(cls, text: str) -> Format:
        """The form that people name, with or without ``-json``; InvalidError."""
        try:
            return cls(text.lower().removesuffix("-json"))
        except ValueError:
            raise InvalidError(
                f"unknown format of a bill of materials: {text[:40]!r}",
                hint="cyclonedx and spdx are there",
            ) from None


@dataclass(frozen=True, slots=True)
class About:
    """The image that a bill is of: its id, what it is called, and when it was made (RFC 3339)."""

    image: Digest
    name: str
    created: str


def document(form: Format, about: About, inventory: Inventory) -> bytes:
    """The bill of *inventory*."""
    write = _cyclonedx if form is Format.CYCLONEDX else _spdx
    body = write(about, inventory)
    return json.dumps(body, ensure_ascii=False, indent=1, sort_keys=False).encode() + b"\n"


def purl(package: Package, system: System) -> str:
    """The package URL: ``pkg:deb/debian/bash@5.2?arch=amd64&distro=debian-12``."""
    version, name = package.version, package.name
    qualifiers: dict[str, str] = {}
    space = ""
    if package.kind in _SYSTEM_KINDS:
        space = system.id or _SYSTEM_KINDS[package.kind]
        if package.architecture:
            qualifiers["arch"] = package.architecture
        if package.kind is Kind.RPM and (found := _EPOCH.fullmatch(version)):
            qualifiers["epoch"], version = found[1], found[2]
        if system.id and system.version:
            qualifiers["distro"] = f"{system.id}-{system.version}"
    elif name.startswith("@"):
        space, _, name = name.partition("/")
    path = f"{_quoted(space)}/{_quoted(name)}" if space else _quoted(name)
    tail = "&".join(f"{key}={_quoted(qualifiers[key])}" for key in sorted(qualifiers))
    return f"pkg:{package.kind}/{path}@{_quoted(version)}" + (f"?{tail}" if tail else "")


def _quoted(text: str) -> str:
    return quote(text, safe=".-_~:")


def _ordered(inventory: Inventory) -> list[Package]:
    return sorted(inventory.packages)


# --- CycloneDX ------------------------------------------------------------------------------------


def _cyclonedx(about: About, inventory: Inventory) -> Json:
    image = f"pkg:oci/{_quoted(_plain_name(about))}@{_quoted(str(about.image))}"
    components: list[Json] = []
    system = inventory.system
    if system.id:
        entry: Json = {"type": "operating-system", "bom-ref": f"os:{system.id}", "name": system.id}
        if system.version:
            entry["version"] = system.version
        if system.pretty:
            entry["description"] = system.pretty
        components.append(entry)
    components += [_component(at, one, system) for at, one in enumerate(_ordered(inventory))]
    references = [str(one["bom-ref"]) for one in components]
    metadata: Json = {
        "timestamp": about.created,
        "tools": {"components": [{"type": "application", "name": "tare", "version": __version__}]},
        "component": {
            "type": "container",
            "bom-ref": image,
            "name": about.name,
            "version": str(about.image),
        },
    }
    if inventory.notes:
        metadata["properties"] = [{"name": "tare:note", "value": n} for n in inventory.notes]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, str(about.image))}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": [{"ref": image, "dependsOn": references}],
        "compositions": [
            {
                "aggregate": "incomplete" if inventory.notes else "unknown",
                "assemblies": [image],
            }
        ],
    }


def _component(at: int, package: Package, system: System) -> Json:
    address = purl(package, system)
    found: Json = {
        "type": "library",
        "bom-ref": f"{address}#{at}",
        "name": package.name,
        "version": package.version,
        "purl": address,
    }
    if package.supplier:
        found["supplier"] = {"name": package.supplier}
    if package.license:
        found["licenses"] = [{"license": {"name": package.license}}]
    properties = {
        "tare:source": package.source,
        "tare:integrity": package.integrity,
        "tare:where": package.where,
    }
    found["properties"] = [{"name": k, "value": v} for k, v in properties.items() if v]
    return found


# --- SPDX -----------------------------------------------------------------------------------------


def _spdx(about: About, inventory: Inventory) -> Json:
    root: Json = {
        "SPDXID": "SPDXRef-image",
        "name": about.name,
        "versionInfo": str(about.image),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
        "checksums": [{"algorithm": "SHA256", "checksumValue": about.image.hex}],
    }
    packages = [root]
    relations: list[Json] = [_related("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")]
    for at, package in enumerate(_ordered(inventory)):
        packages.append(_spdx_package(at, package, inventory.system))
        relations.append(_related("SPDXRef-image", "CONTAINS", f"SPDXRef-package-{at}"))
    creation: Json = {"created": _seconds(about.created), "creators": [f"Tool: tare-{__version__}"]}
    if inventory.notes:
        creation["comment"] = "Incomplete: " + "; ".join(inventory.notes)
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": about.name,
        "documentNamespace": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'spdx {about.image}')}",
        "creationInfo": creation,
        "packages": packages,
        "relationships": relations,
    }


def _spdx_package(at: int, package: Package, system: System) -> Json:
    found: Json = {
        "SPDXID": f"SPDXRef-package-{at}",
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl(package, system),
            }
        ],
    }
    if package.license:
        found["licenseComments"] = f"The package says: {package.license}"
    if package.supplier:
        found["supplier"] = f"Organization: {package.supplier}"
    if package.source or package.where:
        built = f"built from {package.source}; " if package.source else ""
        found["sourceInfo"] = f"{built}found in {package.where}"
    return found


def _related(one: str, how: str, other: str) -> Json:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def _seconds(moment: str) -> str:
    """SPDX's times have whole seconds."""
    return re.sub(r"\.[0-9]+", "", moment)


def _plain_name(about: About) -> str:
    """The last part of the image's name, without its tag."""
    return about.name.rpartition("/")[2].partition(":")[0] or "image"
