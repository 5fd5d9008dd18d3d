"""Rules for frame counts and sizes, and the errors that name both neighbours."""

from dit_video.core.errors import BadInput


def nearest_frames(frames: int, stride: int = 4) -> tuple[int, int]:
    """The valid counts `stride * k + 1` just below and just above (equal when `frames` is valid)."""
    low = max(1, (max(frames, 1) - 1) // stride * stride + 1)
    return low, (low if low == frames else low + stride)


def frames_rule(frames: int, stride: int = 4) -> int:
    """Returns `frames` when it is `stride * k + 1`. Raises `BadInput` naming both neighbours."""
    if frames < 1:
        raise BadInput(f"num_frames={frames}: a clip has at least one frame. Use 1 or {stride + 1}.")
    low, high = nearest_frames(frames, stride)
    if low != frames:
        raise BadInput(f"num_frames={frames}: this model needs {stride}k+1. Use {low} or {high}, or --fit nearest.")
    return frames


def nearest_size(size: int, multiple: int) -> tuple[int, int]:
    """The multiples just below and just above (equal when `size` is one)."""
    low = max(multiple, size // multiple * multiple)
    return low, (low if low == size else max(low, size // multiple * multiple + multiple))


def size_rule(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Returns (height, width) when both are multiples. Raises `BadInput` naming the neighbours."""
    for name, size in (("height", height), ("width", width)):
        low, high = nearest_size(size, multiple)
        if low != size:
            either = f"Nearest: {low}" if low == high else f"Nearest: {low} or {high}"
            raise BadInput(f"{name}={size} must be a multiple of {multiple}. {either}; or --fit nearest.")
    return height, width
