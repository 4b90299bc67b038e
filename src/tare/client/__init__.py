"""The caller's side of the socket: SDK and command line."""
