"""tare: one engine that runs an OCI image as a container or as a virtual machine.

The SDK is imported when it is first used, so that the command line does not pay for it.
"""

import sys

__version__ = "0.1.0"

__all__ = ["Client", "Container", "Options", "Result", "Usage", "__version__", "connect", "run"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.sdk import Client, Container, connect, run
    from tare.client.sdk_values import Options, Result, Usage

_HOMES = {
    "Client": "tare.client.sdk",
    "Container": "tare.client.sdk",
    "connect": "tare.client.sdk",
    "run": "tare.client.sdk",
    "Options": "tare.client.sdk_values",
    "Result": "tare.client.sdk_values",
    "Usage": "tare.client.sdk_values",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tare' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


class _CallablePackage(type(sys)):  # type: ignore[misc]  # ModuleType, without importing types
    """The package tare.run, which may also be called: `tare.run(...)` is the SDK's function."""

    def __call__(self, *arguments: object, **options: object) -> object:
        """Do what `tare.client.sdk.run` does."""
        from importlib import import_module

        return import_module("tare.client.sdk").run(*arguments, **options)


class _Package(type(sys)):  # type: ignore[misc]  # as above
    """This package: `run` is a function of the SDK for users and a package of the engine inside.

    Whoever imports both (the daemon's own tests) must find both under the one name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "run" and isinstance(value, type(sys)):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
