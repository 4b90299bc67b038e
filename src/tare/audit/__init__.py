"""Checks of host, engine, images, workloads and Dockerfiles: findings with their reference."""
