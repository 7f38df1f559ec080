"""Writes ../fixtures/audio.json: the same quarter of a second in every kind of audio file.

Run with NumPy, soundfile and PyAV: python make_audio_fixture.py
The sound is `sound` below, which the test computes itself at the rate it wants; `tolerance` is how far a decoder may be
from it, `unsupported` marks files that are to be refused by the name given.
"""

import io
import json
import pathlib

import av
import numpy as np
import soundfile

SECONDS = 0.25


def sound(rate):
    """Two tones under one swell: nothing at the ends that a resampler could smear."""
    time = np.arange(int(SECONDS * rate)) / rate
    swell = np.sin(np.pi * time / SECONDS) ** 2
    return swell * (0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 1500 * time))


def channels(rate, n):
    """The sound as the mean of `n` channels that differ."""
    mono = sound(rate)
    return np.stack([mono * (1 + (0.5 if i % 2 else -0.5) * (n % 2 == 0)) for i in range(n)], axis=1)


def plain(kind, subtype, rate, n=1):
    file = io.BytesIO()
    soundfile.write(file, channels(rate, n), rate, format=kind, subtype=subtype)
    return file.getvalue()


def coded(container, codec, rate, sample_format, bit_rate=None):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        if bit_rate:
            stream.bit_rate = bit_rate
        samples = sound(rate).astype(np.float32)[None]
        if sample_format == "s16p":
            samples = np.round(samples * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()


def main():
    files = {
        "wav 16 bit": (plain("WAV", "PCM_16", 16000), 1e-4),
        "wav 16 bit stereo 22050": (plain("WAV", "PCM_16", 22050, 2), 1e-3),
        "wav 8 bit 8000": (plain("WAV", "PCM_U8", 8000), 2e-2),
        "wav 24 bit 16000": (plain("WAV", "PCM_24", 16000), 1e-5),
        "wav float three channels": (plain("WAV", "FLOAT", 16000, 3), 1e-6),
        "wav mu-law": (plain("WAV", "ULAW", 16000), 2e-2),
        "flac 22050": (plain("FLAC", "PCM_16", 22050), 1e-3),
        "flac stereo": (plain("FLAC", "PCM_16", 16000, 2), 1e-4),
        "ogg vorbis 22050": (plain("OGG", "VORBIS", 22050), 5e-2),
        "mp3 44100": (coded("mp3", "libmp3lame", 44100, "s16p", 96000), 5e-2),
        "m4a aac 44100": (coded("ipod", "aac", 44100, "fltp", 96000), 5e-2),
        "m4a alac 22050": (coded("ipod", "alac", 22050, "s16p"), 1e-3),
        "ogg opus": (coded("ogg", "libopus", 48000, "flt", 48000), "Opus"),
    }
    cases = {}
    for name, (content, expected) in files.items():
        key = "unsupported" if isinstance(expected, str) else "tolerance"
        cases[name] = {"file": content.hex(), key: expected}
        if "aac" in name:
            # Symphonia does not apply edit lists, so what the encoder put before the sound stays.
            cases[name]["delay"] = 1024 / 44100
    path = pathlib.Path(__file__).parent / "../fixtures/audio.json"
    path.write_text(json.dumps(cases, indent=1) + "\n")


main()
