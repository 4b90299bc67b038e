"""tare: one engine that runs an OCI image as a container or as a virtual machine."""

__version__ = "0.1.0"
