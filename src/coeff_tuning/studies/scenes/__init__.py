"""Rendered scenes: what coefficients add to a language model that sees image tokens through a projection."""
