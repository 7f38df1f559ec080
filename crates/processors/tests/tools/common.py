"""What the fixture scripts share: test pictures that the Rust tests can make again from a seed."""

import numpy as np


def noise(seed, width, height):
    """RGB noise from a linear congruential generator: byte = top byte of the state. Odd seeds give black and white
    samples only, whose edges overshoot and get clipped."""
    count = width * height * 3
    # x_n = a^n x_0 + c (a^(n-1) + ... + 1), computed by doubling: a Python loop per byte would take minutes.
    multipliers, offsets = np.ones(1, np.uint32), np.zeros(1, np.uint32)
    a, c = np.uint32(1664525), np.uint32(1013904223)
    with np.errstate(over="ignore"):
        while len(multipliers) < count + 1:
            multipliers, offsets = (
                np.concatenate([multipliers, multipliers * a]),
                np.concatenate([offsets, multipliers * c + offsets]),
            )
            a, c = a * a, a * c + c
        states = multipliers[1 : count + 1] * np.uint32(seed) + offsets[1 : count + 1]
    samples = (states >> np.uint32(24)).astype(np.uint8)
    if seed % 2:
        samples = np.where(samples >= 128, 255, 0).astype(np.uint8)
    return samples.reshape(height, width, 3)
