"""TPU slices: chips, hosts and the names that schedulers have for them."""

import pytest

from dit_video.core.errors import BadInput
from dit_video.core.slices import find_slice, parse_slice


@pytest.mark.parametrize(
    "text, chips, hosts, a_host, devices, machine, cloud",
    [
        ("v5e:1x1", 1, 1, 1, 1, "ct5lp-hightpu-1t", "v5litepod-1"),
        ("v5e:4x4", 16, 4, 4, 16, "ct5lp-hightpu-4t", "v5litepod-16"),
        ("v6e:2x4", 8, 1, 8, 8, "ct6e-standard-8t", "v6e-8"),
        ("v6e:8x8", 64, 16, 4, 64, "ct6e-standard-4t", "v6e-64"),
        ("v5p:2x4x4", 32, 8, 4, 32, "ct5p-hightpu-4t", "v5p-64"),
        ("v5p:4x4x4", 64, 16, 4, 64, "ct5p-hightpu-4t", "v5p-128"),
        ("tpu7x:2x2x2", 8, 2, 4, 16, "tpu7x-standard-4t", None),
        ("TPU7x:4x4x8", 128, 32, 4, 256, "tpu7x-standard-4t", None),
    ],
)
def test_what_a_name_stands_for(text, chips, hosts, a_host, devices, machine, cloud):
    found = parse_slice(text)
    assert (found.chips, found.hosts, found.chips_per_host, found.devices) == (chips, hosts, a_host, devices)
    assert (found.machine, found.cloud_type, str(found)) == (machine, cloud, text.lower())


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5:4x4", "Did you mean v5p or v5e|Did you mean v5e|Did you mean v5p"),
        ("h100:8", "unknown TPU 'h100'"),
        ("v5e", "as in v5e:4x4"),
        ("v5e:4by4", "as in v5e:4x4"),
        ("v6e:2x8", "Use 4x4"),
        ("v5e:4x4x4", "Use 8x8"),
        ("v5p:4x4", "three multiples of 4"),
        ("v5p:8x4x4", "smallest first"),
        ("v5p:0x4x4", "three multiples of 4"),
        ("v5p:16x24x24", "up to 6144 chips"),
    ],
)
def test_slices_that_there_are_not(text, message):
    with pytest.raises(BadInput, match=message):
        parse_slice(text)


def test_a_docstring_names_its_slice():
    assert str(find_slice("runs on 32 chips:\n\n  plan this --topology v5p:2x4x4\n")) == "v5p:2x4x4"
    assert find_slice("two CPU cores, and a ratio of v5p: 4") is None
