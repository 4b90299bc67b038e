"""All packages of a tree of files: the one call that the rest of the engine makes.

Not for: mounting the image.
"""

from __future__ import annotations

import os

from tare.build.sbom import languages, system
from tare.build.sbom.documents import About, Format, document
from tare.build.sbom.inventory import Files, Inventory


def inventory_of(root: int) -> Inventory:
    """What is installed below the directory *root*; nothing of it is run, no link leads out."""
    inventory = Inventory()
    files = Files(root, inventory)
    system.collect(files, inventory)
    languages.collect(files, inventory)
    return inventory


def bill(root: int, form: Format, about: About) -> bytes:
    """The bill of materials of the tree *root*, whose descriptor is closed."""
    try:
        return document(form, about, inventory_of(root))
    finally:
        os.close(root)
