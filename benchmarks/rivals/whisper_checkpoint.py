#!/usr/bin/env python3
"""Whisper of base size with random weights, its conversion for CTranslate2, and recordings of noise: half a minute and ten.

usage: whisper_checkpoint.py FOLDER        (needs torch, transformers and ctranslate2)"""
import os
import sys
import wave

import numpy as np

RATE, RECORDINGS = 16_000, {"short": 30, "long": 600}


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
    # Otherwise transformers forgets all of these when it answers.
    settings._from_model_config = False
    plain = os.path.join(folder, "whisper-base")
    model.save_pretrained(plain)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(plain)
    names = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **names).save_pretrained(plain)
    convert(model, tokens, plain, os.path.join(folder, "whisper-base-ct2"))
    for seed, (name, seconds) in enumerate(RECORDINGS.items()):
        with wave.open(os.path.join(folder, name + ".wav"), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
            noise = np.random.default_rng(seed).normal(0, 3000, seconds * RATE)
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


checkpoint(sys.argv[1])
