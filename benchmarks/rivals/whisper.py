#!/usr/bin/env python3
"""Whisper of base size with random weights, and how fast others transcribe with it.

usage: whisper.py checkpoint FOLDER                 the checkpoint, its conversion for CTranslate2, four recordings
       whisper.py transformers FOLDER [BEAMS]       transformers in bfloat16
       whisper.py faster-whisper FOLDER [BEAMS]     faster-whisper (CTranslate2) in 8 bits

Every window of 30 seconds gets an answer of exactly TOKENS tokens: a timestamp, then text that never ends. Needs torch
and transformers, or faster-whisper (for the conversion: all of them)."""
import json
import os
import sys
import time
import wave

import numpy as np

# Tokens per window: about as many as half a minute of speech takes.
TOKENS, SECONDS, RECORDINGS, RATE = 100, 120, 4, 16_000
THREADS = int(os.environ.get("THREADS", "2"))


def checkpoint(folder):
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"Ġw{i}" for i in range(50_257 - len(alphabet))]
    tokens = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:99], "translate", "transcribe", "startoflm"]
    names += ["startofprev", "nospeech", "notimestamps", *(f"{i * 0.02:.2f}" for i in range(1501))]
    tokens.add_special_tokens([AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names])
    ids = tokens.token_to_id
    end, first = ids("<|endoftext|>"), ids("<|0.00|>")
    assert (end, first, tokens.get_vocab_size()) == (50_257, 50_364, 51_865)

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51_865, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, suppress_tokens=None,
        begin_suppress_tokens=None)
    model = WhisperForConditionalGeneration(config)
    # Nobody ends an answer: the end and all timestamps lie where the last norm never points.
    away = torch.ones(512)
    model.model.decoder.layer_norm.bias.data.copy_(4 * away)
    table = model.model.decoder.embed_tokens.weight.data
    table[end:] -= away / 20
    settings = model.generation_config
    settings.lang_to_id = {f"<|{code}|>": ids(f"<|{code}|>") for code in list(LANGUAGES)[:99]}
    settings.task_to_id = {task: ids(f"<|{task}|>") for task in ("transcribe", "translate")}
    settings.no_timestamps_token_id, settings.prev_sot_token_id = first - 1, ids("<|startofprev|>")
    settings.is_multilingual, settings.max_initial_timestamp_index, settings.max_length = True, 50, 448
    settings.suppress_tokens, settings.begin_suppress_tokens = [ids("<|nospeech|>")], [end]
    settings.alignment_heads = [[3, 1], [4, 2], [4, 3], [4, 7], [5, 1], [5, 2], [5, 4], [5, 6]]
    settings.bos_token_id = settings.eos_token_id = settings.pad_token_id = end
    settings.decoder_start_token_id = ids("<|startoftranscript|>")
    plain = os.path.join(folder, "whisper-base")
    model.save_pretrained(plain)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(plain)
    names = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **names).save_pretrained(plain)
    convert(model, tokens, plain, os.path.join(folder, "whisper-base-ct2"))
    for i in range(RECORDINGS):
        with wave.open(os.path.join(folder, f"noise{i}.wav"), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
            noise = np.random.default_rng(i).normal(0, 3000, SECONDS * RATE)
            file.writeframes(noise.clip(-32768, 32767).astype("<i2").tobytes())


def convert(model, tokens, plain, target):
    import shutil

    from ctranslate2.converters.transformers import WhisperLoader

    # The converter's own entry point wants a tokenizer class that random weights have no vocabulary for.
    loader = WhisperLoader()
    spec = loader.get_model_spec(model)
    loader.set_config(spec.config, model, None)
    spec.register_vocabulary(sorted(tokens.get_vocab(), key=tokens.token_to_id))
    spec.validate()
    spec.optimize(quantization="float32")
    os.makedirs(target, exist_ok=True)
    spec.save(target)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copy(os.path.join(plain, name), target)


def recordings(folder):
    for i in range(RECORDINGS):
        with wave.open(os.path.join(folder, f"noise{i}.wav"), "rb") as file:
            yield np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / 32768


def transformers(folder, beams):
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.set_grad_enabled(False)
    torch.set_num_threads(THREADS)
    folder = os.path.join(folder, "whisper-base")
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)

    def transcribe(audio):
        mel = extractor(audio, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest")
        out = model.generate(
            mel["input_features"].to(torch.bfloat16), return_timestamps=True, language="en", task="transcribe",
            num_beams=beams, max_new_tokens=TOKENS, condition_on_prev_tokens=False, return_segments=True)
        return [len(one["tokens"]) for one in out["segments"][0]]

    return transcribe


def faster_whisper(folder, beams):
    from faster_whisper import WhisperModel

    model = WhisperModel(os.path.join(folder, "whisper-base-ct2"), device="cpu", compute_type="int8", cpu_threads=THREADS)

    def transcribe(audio):
        segments, _ = model.transcribe(
            audio, language="en", beam_size=beams, temperature=0, condition_on_previous_text=False,
            max_new_tokens=2 * TOKENS - 3, no_speech_threshold=None, log_prob_threshold=None, compression_ratio_threshold=None)
        return [len(one.tokens) for one in segments]

    return transcribe


def measure(program, folder, beams):
    transcribe = {"transformers": transformers, "faster-whisper": faster_whisper}[program](folder, beams)
    factors, tokens = [], []
    for audio in recordings(folder):
        start = time.perf_counter()
        tokens = transcribe(audio)
        factors.append((time.perf_counter() - start) / (len(audio) / RATE))
    line = dict(program=program, beams=beams, factor=round(min(factors), 4), all=[round(one, 4) for one in factors])
    print(json.dumps({**line, "tokens": tokens}))


def main():
    command, folder, *rest = sys.argv[1:]
    if command == "checkpoint":
        checkpoint(folder)
    else:
        measure(command, folder, int(rest[0]) if rest else 5)


main()
