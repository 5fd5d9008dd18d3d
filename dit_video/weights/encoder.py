"""Which encoder made latents: a digest of what they depend on."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from dit_video.models.vae import VAEConfig
from dit_video.weights.names import flatten

_PARTS = ("encoder", "quant_conv")
_SIZES = ("base", "z", "mult", "res_blocks", "temporal", "attn_scales", "patch")


def encoder_digest(cfg: VAEConfig, params: Any) -> str:
    """Twelve hex digits that change with any weight of the encoder and with its sizes. Decoder and statistics are left
    out: raw latents stay good when these are trained or measured again."""
    sizes = {name: value for name, value in asdict(cfg).items() if name in _SIZES}
    found = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for name, array in sorted(flatten({part: params[part] for part in _PARTS}).items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(array, np.float32).tobytes())
    return found.hexdigest()[:12]
