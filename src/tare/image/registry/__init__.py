"""Registries, as their client: OCI distribution 1.1 and Docker's, pull and push."""
