"""File formats of weights: what is in them and how to get one tensor out, nothing about families."""
