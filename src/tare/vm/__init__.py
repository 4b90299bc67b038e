"""A machine: the same image with a kernel of its own, in QEMU inside one of our sandboxes."""
