"""Judges: what is seen in a clip, measured from its frames alone, against what was asked for."""
