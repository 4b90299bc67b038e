"""A CONTAINER: the plan of a sandbox, the process that applies it, the keeper."""
