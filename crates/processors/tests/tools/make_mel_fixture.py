"""Writes ../fixtures/mel.json: frames of log-mel spectrograms by transformers' WhisperFeatureExtractor.

Run with transformers 5 and torch: python make_mel_fixture.py
The recording is `recording` below, which the test computes itself.
"""

import json
import pathlib

import numpy as np
from transformers import WhisperFeatureExtractor

SAMPLES = 20_000
FRAMES = [0, 1, 2, 3, 60, 80, 100, 101, 122, 123, 124]


def recording():
    """A tone in noise, silence, and noise again: whole numbers, so that it is the same everywhere."""
    state, out = 7, np.zeros(SAMPLES, np.float32)
    for i in range(SAMPLES):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        noise = (state >> 24) - 128
        tone = 100 if i // 20 % 2 else -100
        out[i] = 0 if 11_000 <= i < 14_000 else (noise + (tone if i < 11_000 else 0)) / 512
    return out


def main():
    cases = {}
    for mels in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=mels)
        whole = extractor(recording(), sampling_rate=16000, padding="longest", truncation=False, return_tensors="np")
        window = extractor(recording(), sampling_rate=16000, return_tensors="np")
        whole, window = whole["input_features"][0], window["input_features"][0]
        cases[str(mels)] = {
            "config": extractor.to_dict(),
            "frames": FRAMES,
            "shape": list(whole.shape),
            "whole": [[float(f"{x:.7g}") for x in whole[:, frame]] for frame in FRAMES],
            "window_shape": list(window.shape),
            "window": [[float(f"{x:.7g}") for x in window[:, frame]] for frame in FRAMES],
        }
        cases[str(mels)]["config"].pop("mel_filters", None)
    path = pathlib.Path(__file__).parent / "../fixtures/mel.json"
    path.write_text(json.dumps(cases) + "\n")


main()
