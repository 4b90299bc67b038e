"""CONTENT: blobs, layers, names; what an image is made of and where it lies."""
