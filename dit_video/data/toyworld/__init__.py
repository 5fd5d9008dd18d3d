"""Procedural, captioned shapes: the world that the weights on board know."""
