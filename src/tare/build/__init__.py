"""DOCKERFILE TO IMAGE: the language, the graph of steps with their cache keys, the executor."""
