"""The Docker-compatible server."""
