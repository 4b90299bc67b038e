"""The checks as a table: what each asks for, why, what to do. A module for each part. Pure data."""
