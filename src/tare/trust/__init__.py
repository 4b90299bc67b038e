"""Evidence: who signed which content, and whether that is enough. Verdicts with reasons.

Nothing here changes anything: no file is written, no network is used. What is parsed came from
strangers; what cannot be read, or says two things, proves nothing.

Not for: where evidence is kept and when it is asked for (``engine``).
"""
