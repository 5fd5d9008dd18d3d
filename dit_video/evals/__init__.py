"""Judges: what is seen in a clip, measured from its frames alone, against what was asked for."""

# The files of a report; those of an older one are replaced or removed.
WRITES = ("index.html", "report.json", "first.png", "best.png", "worst.png", "against.png")
