"""VALUES, pure: what images, workloads and states are. No input or output."""
