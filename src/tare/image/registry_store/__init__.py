"""The content of the registry that tare serves: blobs, manifests, tags, uploads.

`RegistryStore` (``store``) is the door; the images of the engine itself, which the registry shows
beside them, are ``engine_images``. Not for: HTTP (``api.registry``), the engine's own store of
images (``image.store``).
"""
