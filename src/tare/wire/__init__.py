"""Docker's JSON to and from our values: the only code that knows Docker's field names.

Reads are strict where security or truth matters and as lenient as Docker where clients lean on
it: unknown fields are ignored, ``null`` is *not given*. Nothing here does input or output.
"""
