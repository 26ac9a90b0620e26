"""V, M and C, and the three as one agent: no files, no environments."""
