"""V, M and C: the mathematics of the paper, without files, devices or environments."""
