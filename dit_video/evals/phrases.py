"""Synonyms that training never sees: the same words in phrases that are new.

A text encoder that was trained on captions alone cannot know a word that stands in none of them, so these phrases hold
no such word (a test compares): they ask whether words are understood, not whether captions were learned by heart. What
a stranger's own vocabulary does is asked by the free prompts.
"""

from dit_video.data.toyworld import captions
from dit_video.data.toyworld.captions import Lexicon

Phrases = dict[str, tuple]

_SHAPE: Phrases = {
    "circle": ("round disc", "circle shape"),
    "square": ("square box", "square shape"),
    "triangle": ("three-sided triangle", "triangle shape"),
    "star": ("five-pointed shape", "star shape"),
    "ring": ("round hoop", "ring shape"),
}
_COLOUR: Phrases = {
    "red": ("crimson red", "scarlet red"),
    "green": ("emerald green",),
    "blue": ("cobalt blue",),
    "yellow": ("lemon yellow",),
    "orange": ("tangerine orange",),
    "purple": ("violet purple",),
    "pink": ("rose pink",),
    "white": ("snow white",),
}
_SIZE: Phrases = {
    "small": ("small-sized", "tiny little"),
    "medium": (),
    "large": ("large-sized", "huge big"),
}
_MOTION: Phrases = {
    "still": (
        ("stays in place", "staying in place"),
        ("remains still", "remaining still"),
        ("stands in place", "standing in place"),
    ),
    "moves": (
        ("goes along", "going along"),
        ("glides along", "gliding along"),
        ("slides along", "sliding along"),
    ),
    "bounces": (
        ("bounces in place", "bouncing in place"),
        ("hops and bounces", "hopping and bouncing"),
    ),
    "circles": (
        ("goes in a circle", "going in a circle"),
        ("drifts round in circles", "drifting round in circles"),
        ("glides along a circular path", "gliding along a circular path"),
    ),
    "grows": (
        ("gets larger", "getting larger"),
        ("becomes bigger", "becoming bigger"),
        ("grows bigger", "growing bigger"),
    ),
    "shrinks": (
        ("grows smaller", "growing smaller"),
        ("shrinks and gets smaller", "shrinking and getting smaller"),
    ),
    "spins": (
        ("rotates in place", "rotating in place"),
        ("spins in place", "spinning in place"),
        ("turns around", "turning around"),
    ),
}
_DIRECTION: Phrases = {
    "left": ("to the left side", "towards the left side", "straight left"),
    "right": ("to the right side", "towards the right side", "straight right"),
    "up": ("straight to the top", "to the top"),
    "down": ("straight to the bottom", "to the bottom"),
    "up-left": ("diagonally to the upper left", "towards the upper left"),
    "up-right": ("diagonally to the upper right", "towards the upper right"),
    "down-left": ("diagonally to the lower left", "towards the lower left"),
    "down-right": ("diagonally to the lower right", "towards the lower right"),
}
_SPEED: Phrases = {
    "slowly": ("slowly at a slow pace",),
    "middle": (),
    "quickly": ("at a fast pace",),
}
_BACKGROUND: Phrases = {
    "black": ("against a black background", "on a black wall"),
    "grey": ("against a grey background", "on a gray wall"),
    "white": ("against a white background", "on a white wall"),
    "sky": ("against a sky background", "in the sky"),
    "gradient": ("against a gradient background", "on a smooth gradient"),
    "checkered": ("against a checkered background", "in front of a checkerboard"),
    "striped": ("against a striped background", "in front of stripes"),
}
_LIGHT: Phrases = {
    "day": ("during the day", "by daylight"),
    "golden hour": ("in the golden hour", "by golden evening light"),
    "night": ("during the night", "in the night"),
}
_CAMERA: Phrases = {
    "static": ("the camera is fixed", "the camera stays still"),
    "pans left": ("the camera pans to the left", "camera panning to the left"),
    "pans right": ("the camera pans to the right", "camera panning to the right"),
    "zooms in": ("and the camera zooms in", "the camera is seen zooming in"),
    "zooms out": ("and the camera zooms out", "the camera is seen zooming out"),
    "handheld": ("a shaky camera", "the handheld camera is shaky"),
}
NEW = Lexicon(_SHAPE, _COLOUR, _SIZE, _MOTION, _DIRECTION, _SPEED, captions.TURN_WORDS, _BACKGROUND, _LIGHT, _CAMERA)


def _beside(known: Phrases, new: Phrases) -> Phrases:
    """The canonical word of each list of training, then the new ones."""
    return {value: (options[0], *new[value]) for value, options in known.items()}


HELDOUT = Lexicon(*(_beside(known, new) for known, new in zip(captions.TRAINING, NEW, strict=True)))
PHRASES = frozenset(
    phrase
    for name, table in zip(NEW._fields, NEW, strict=True)
    for options in table.values()
    for option in options
    for phrase in ([option] if isinstance(option, str) else option)
    if name != "turn"
)
