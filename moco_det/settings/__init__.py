"""Detection configs: keys and defaults, what is honoured, the matrix of the papers."""
