#!/usr/bin/env python3
"""Seconds per second of sound of a Whisper: ours, faster-whisper's or transformers'. The folder is whisper_checkpoint.py's.

usage: rival_whisper.py ocelli|faster-whisper|transformers PRECISION FOLDER THREADS BEAMS TOKENS

PRECISION: q8 (ocelli), int8 (faster-whisper), bf16 or fp32 (transformers). Every window of 30 seconds gets an answer of
exactly TOKENS tokens: a timestamp, then text that never ends; whoever gives another number is refused. One recording is
warmed up with, of one window; the long one counts."""
import json
import os
import re
import subprocess
import sys
import time
import wave

import numpy

from shared import report

RATE, WINDOW = 16_000, 30

program, precision, folder, (threads, beams, tokens) = sys.argv[1], sys.argv[2], sys.argv[3], map(int, sys.argv[4:7])


def recording(name):
    with wave.open(os.path.join(folder, name), "rb") as file:
        return numpy.frombuffer(file.readframes(-1), "<i2").astype(numpy.float32) / 32768


def transformers():
    import torch
    import transformers as t

    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    model = t.WhisperForConditionalGeneration.from_pretrained(os.path.join(folder, "whisper-base"), dtype=dtype).eval()
    extractor = t.WhisperFeatureExtractor.from_pretrained(os.path.join(folder, "whisper-base"))

    def transcribe(audio):
        # Up to one window it is padded to one, and a longer recording stays as long as it is.
        whole = dict(truncation=False, padding="longest") if len(audio) > WINDOW * RATE else {}
        mel = extractor(audio, sampling_rate=RATE, return_tensors="pt", **whole)
        out = model.generate(
            mel["input_features"].to(dtype), return_timestamps=True, language="en", task="transcribe", num_beams=beams,
            max_new_tokens=tokens, condition_on_prev_tokens=False, return_segments=True)
        return [len(one["tokens"]) for one in out["segments"][0]]

    return f"transformers {t.__version__}", transcribe


def faster_whisper():
    import ctranslate2
    from faster_whisper import WhisperModel, __version__

    model = WhisperModel(os.path.join(folder, "whisper-base-ct2"), device="cpu", compute_type=precision, cpu_threads=threads)

    def transcribe(audio):
        # CTranslate2 gives a text half of the length it is asked for, the prompt (3 tokens) and an end included.
        segments, _ = model.transcribe(
            audio, language="en", beam_size=beams, temperature=0, condition_on_previous_text=False,
            max_new_tokens=2 * tokens - 1, no_speech_threshold=None, log_prob_threshold=None, compression_ratio_threshold=None)
        return [len(one.tokens) for one in segments]

    return f"faster-whisper {__version__} (CTranslate2 {ctranslate2.__version__})", transcribe


def measure(transcribe):
    transcribe(recording("short.wav"))
    audio = recording("long.wav")
    start = time.perf_counter()
    answered = transcribe(audio)
    seconds = len(audio) / RATE
    return checked(answered, seconds, (time.perf_counter() - start) / seconds)


def checked(answered, seconds, factor):
    """The figures, if every window was answered with as many tokens as it should."""
    windows = round(seconds / WINDOW)
    assert answered == [tokens] * windows, f"{windows} windows were answered with {answered} tokens"
    return dict(real_time_factor=factor, windows=windows, tokens_per_window=tokens)


def ocelli():
    """The program tells itself how long each recording took, loading not included."""
    command = [os.environ["OCELLI"], "transcribe", *(os.path.join(folder, name) for name in ("short.wav", "long.wav")),
               "--model", os.path.join(folder, "whisper-base"), "--quant", precision, "--quant-vision", precision,
               "--language", "en", "--no-fallback", "--no-previous-text", "--max-tokens", str(tokens),
               "--num-beams", str(beams), "--threads", str(threads), "--verbose", "--format", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    transcript = json.loads(ran.stdout.splitlines()[-1])
    factor = re.findall(r"real-time factor ([0-9.]+)\)", ran.stderr)[1]
    return checked([len(segment["tokens"]) for segment in transcript["segments"]], transcript["duration"], float(factor))


if program == "ocelli":
    report("ocelli", precision, 0.0, ocelli())
else:
    start = time.perf_counter()
    name, transcribe = {"transformers": transformers, "faster-whisper": faster_whisper}[program]()
    load = time.perf_counter() - start
    report(name, precision, load, measure(transcribe))
