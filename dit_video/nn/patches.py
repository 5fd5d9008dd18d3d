"""Latents to patches and back: exact inverses, no weights.

A patch is a block of (p_t, p_h, p_w) latent positions, flattened in the order (p_t, p_h, p_w, channel).
"""

from jaxtyping import Array, Float

from dit_video.core.errors import BadInput

Patch = tuple[int, int, int]


def grid_of(shape: tuple[int, ...], patch: Patch) -> tuple[int, int, int]:
    """Patches along time, height and width of a latent of `shape` (B, T, H, W, C).

    Raises `BadInput` when the patch does not divide the latent.
    """
    for name, size, stride in zip(("frames", "height", "width"), shape[1:4], patch, strict=True):
        if size % stride:
            raise BadInput(
                f"latent {name}={size}: patches of {patch} need a multiple of {stride}. "
                f"Nearest: {max(size // stride, 1) * stride} or {(size // stride + 1) * stride}."
            )
    return shape[1] // patch[0], shape[2] // patch[1], shape[3] // patch[2]


def patchify(x: Float[Array, "B T H W C"], patch: Patch) -> Float[Array, "B t h w P"]:
    """Cuts a latent into patches; P = p_t * p_h * p_w * C. Raises `BadInput` when the patch does not divide it."""
    (t, h, w), (pt, ph, pw) = grid_of(x.shape, patch), patch
    B, *_, C = x.shape
    x = x.reshape(B, t, pt, h, ph, w, pw, C).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(B, t, h, w, pt * ph * pw * C)


def unpatchify(x: Float[Array, "B t h w P"], patch: Patch) -> Float[Array, "B T H W C"]:
    """The inverse of `patchify`. Raises `BadInput` when P is not a multiple of the patch's positions."""
    (B, t, h, w, P), (pt, ph, pw) = x.shape, patch
    C, rest = divmod(P, pt * ph * pw)
    if rest:
        raise BadInput(f"{P} numbers a patch are not whole channels of patches of {patch}")
    x = x.reshape(B, t, h, w, pt, ph, pw, C).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(B, t * pt, h * ph, w * pw, C)
