"""What an image is made of: its packages, read from its files, as CycloneDX or SPDX."""
