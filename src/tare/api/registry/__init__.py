"""The registry that tare serves: OCI distribution 1.1 over HTTP.

``server`` listens, ``routes`` finds a handler, which is in ``blobs``, ``uploads``, ``manifests`` or
``listings``; ``command`` is the process behind ``tare registry``. The content is
``image.registry_store``'s.
"""
