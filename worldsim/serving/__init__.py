"""A policy behind a port: wire forms, checks, sessions, one turn at a time. Knows the Policy face and no policy."""
