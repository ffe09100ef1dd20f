"""What several editors use: contexts, keys, target vectors, lanes, the solve, hook layers, edited weights."""
