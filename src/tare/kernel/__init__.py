"""LINUX, TYPED: system calls and kernel file systems. Knows nothing of tare."""
