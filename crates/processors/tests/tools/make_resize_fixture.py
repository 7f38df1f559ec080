"""Writes ../fixtures/resize.json: what Pillow's Image.resize makes of test pictures.

Run with Pillow 13 and NumPy: python make_resize_fixture.py
Each case: seed and size of the picture (see common.noise), new size, Pillow's filter number, CRC-32 of the result's
bytes, and the bytes themselves in hexadecimal where they are few.
"""

import json
import pathlib
import zlib

import numpy as np
from common import noise
from PIL import Image

PAIRS = [
    # up
    ((1, 1), (1, 7)), ((1, 1), (5, 4)), ((2, 2), (3, 3)), ((2, 3), (9, 5)), ((5, 7), (10, 14)), ((7, 5), (29, 31)),
    ((16, 16), (17, 17)), ((31, 17), (64, 64)), ((40, 30), (160, 120)), ((3, 3), (200, 3)), ((13, 11), (14, 12)),
    # down
    ((5, 4), (1, 1)), ((9, 9), (3, 3)), ((10, 10), (9, 9)), ((17, 13), (4, 5)), ((64, 48), (32, 24)),
    ((100, 75), (33, 20)), ((150, 90), (64, 64)), ((257, 129), (128, 64)), ((127, 255), (10, 10)),
    ((320, 200), (63, 65)), ((500, 3), (7, 3)), ((3, 500), (3, 7)),
    # one way up, the other down
    ((20, 40), (40, 20)), ((41, 19), (18, 43)), ((1, 64), (64, 1)), ((64, 1), (1, 64)), ((2, 300), (90, 4)),
    # one side kept
    ((12, 10), (12, 25)), ((12, 10), (25, 10)), ((30, 30), (30, 7)), ((30, 30), (7, 30)),
    # the size kept
    ((6, 5), (6, 5)),
    # extreme
    ((1, 1000), (5, 2)), ((1000, 1), (2, 5)), ((1000, 2), (1, 1)), ((2, 1), (999, 3)), ((1, 2), (3, 999)),
    # odd ratios, where rounding shows
    ((37, 53), (36, 52)), ((99, 101), (101, 99)), ((224, 224), (223, 225)), ((61, 61), (59, 67)),
    # as in real use
    ((150, 90), (128, 76)), ((128, 76), (128, 128)), ((128, 128), (64, 64)), ((640, 480), (512, 384)),
]
FULL_BYTES = 150


def main():
    cases = []
    for index, (old, new) in enumerate(PAIRS):
        for number in range(6):
            seed = 1000 + index * 6 + number
            picture = Image.fromarray(noise(seed, *old))
            result = np.asarray(picture.resize(new, resample=number)).tobytes()
            case = {"seed": seed, "from": old, "to": new, "filter": number, "crc32": zlib.crc32(result)}
            if len(result) <= FULL_BYTES:
                case["pixels"] = result.hex()
            cases.append(case)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "resize.json"
    path.write_text(f"[\n{lines}\n]\n")


main()
