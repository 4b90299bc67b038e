"""STATE AND LIFECYCLE: the use cases, and the truth about what runs."""
