"""Makes ../data/whisper_long: a tiny random Whisper with every special token, and what transformers transcribes with it.

Run with transformers 5 and torch: python make_whisper_long.py
The recording is `recording` below, which the test computes itself. The weights are random, but so scaled that answers
depend on the recording and end in time: many short segments, and no token much likelier than the next.
"""

import json
import math
import pathlib

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

OUT = pathlib.Path(__file__).parent / "../data/whisper_long"
RATE, SEED, WIDTH = 16_000, 5, 32
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "hello there, how are you today? I am fine.",
    "one two three four five six seven eight nine ten",
    "Das ist ein Test. Ça va bien! 東京",
] * 20
SPECIAL = ["endoftext", "startoftranscript", "en", "de", "fr", "translate", "transcribe", "startoflm", "startofprev"]
SPECIAL = [f"<|{name}|>" for name in [*SPECIAL, "nospeech", "notimestamps"]]
torch.set_grad_enabled(False)


def recording(seconds):
    """Noise and a tone that change every quarter of a second: whole numbers, so that it is the same everywhere."""
    count = int(seconds * RATE)
    state, noise = 11, np.zeros(count, np.int64)
    for i in range(count):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        noise[i] = (state >> 24) - 128
    at = np.arange(count)
    block = at // 4000
    period = 20 + block * 37 % 90
    tone = np.where(at // period % 2 == 1, 40, -40) * (block * 53 % 7)
    return ((noise * (block * 29 % 5) / 4 + tone) / 1024).astype(np.float32)


def tokenizer():
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    special = SPECIAL + [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
    tokens.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokens


def model(tokens):
    ids = tokens.token_to_id
    end = ids(SPECIAL[0])
    config = WhisperConfig(
        vocab_size=tokens.get_vocab_size(), d_model=WIDTH, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_target_positions=64, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=ids(SPECIAL[1]), suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    whisper = WhisperForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(SEED)

    def random(shape):
        return torch.randn(shape, generator=generator)

    for name, values in whisper.named_parameters():
        if "layer_norm" in name:
            new = 0.1 * random(values.shape) + (1 if name.endswith("weight") else 0)
        elif "embed_tokens" in name:
            new = 0.4 * random(values.shape)
        elif "embed_positions" in name:
            new = 1.5 * random(values.shape)
        elif values.ndim >= 2:
            new = random(values.shape) * 1.2 / math.sqrt(values[0].numel())
        else:
            new = 0.1 * random(values.shape)
        # What is heard shall matter more than what was said.
        values.data.copy_(new * (4 if "encoder_attn" in name and values.ndim >= 2 else 1))
    table = whisper.model.decoder.embed_tokens.weight.data
    first = ids("<|0.00|>")
    # Neighbouring moments are alike.
    second = torch.arange(1501) / 50
    low, part = second.long(), (second - second.floor())[:, None]
    base = random((32, WIDTH))
    table[first:] = ((1 - part) * base[low] + part * base[low + 1]) * 0.28 + table[first:] * 0.1
    half = WIDTH // 2
    angles = torch.arange(1500)[:, None] * torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))[None]
    whisper.model.encoder.embed_positions.weight.data.copy_(torch.cat([angles.sin(), angles.cos()], 1))
    whisper.tie_weights()
    settings = whisper.generation_config
    settings.lang_to_id = {token: ids(token) for token in SPECIAL[2:5]}
    settings.task_to_id = {"transcribe": ids("<|transcribe|>"), "translate": ids("<|translate|>")}
    settings.no_timestamps_token_id = ids("<|notimestamps|>")
    settings.prev_sot_token_id = ids("<|startofprev|>")
    settings.is_multilingual, settings.max_initial_timestamp_index, settings.max_length = True, 50, 64
    settings.suppress_tokens = [1, 2, 7, *(ids(token) for token in SPECIAL[5:10])]
    settings.begin_suppress_tokens = [5, end]
    settings.alignment_heads = [[0, 1], [1, 0]]
    settings.return_timestamps = False
    return whisper.eval()


def transcribed(whisper, extractor, seconds, **options):
    is_long = seconds > 30
    audio = {"padding": "longest", "truncation": False} if is_long else {}
    mel = extractor(recording(seconds), sampling_rate=RATE, return_tensors="pt", **audio)["input_features"]
    options = {"return_timestamps": True, "task": "transcribe", "return_segments": True, **options}
    segments = whisper.generate(mel, **options)["segments"][0]
    if not is_long:
        # The reference goes on into the silence that fills the window up; nobody needs to hear that.
        begin = segments[0]["idxs"][0]
        again = (at for at, one in enumerate(segments) if at > 0 and one["idxs"][0] == begin)
        segments = segments[: next(again, len(segments))]
    part = lambda one: {"start": round(float(one["start"]), 4), "end": round(float(one["end"]), 4)}
    return [{**part(one), "tokens": one["tokens"].tolist()} for one in segments]


def aligned(whisper, extractor, ids, text):
    """When each of the text's tokens begins, as openai/whisper's `find_alignment` finds it."""
    seconds = 12
    mel = extractor(recording(seconds), sampling_rate=RATE, return_tensors="pt")["input_features"]
    start = [ids("<|startoftranscript|>"), ids("<|en|>"), ids("<|transcribe|>")]
    tokens = [*start, ids("<|notimestamps|>"), *text, ids("<|endoftext|>")]
    whisper.set_attn_implementation("eager")
    out = whisper(input_features=mel, decoder_input_ids=torch.tensor([tokens]), output_attentions=True)
    whisper.set_attn_implementation("sdpa")
    heads = whisper.generation_config.alignment_heads
    weights = torch.stack([out.cross_attentions[layer][0, head] for layer, head in heads])[..., : seconds * 50]
    weights = weights.softmax(-1) if False else weights / weights.sum(-1, keepdim=True)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    matrix = _median_filter((weights - mean) / std, 7).mean(0)[len(start) : -1]
    rows, columns = _dynamic_time_warping(-matrix.double().numpy())
    jumps = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    probabilities = out.logits[0, len(start) : -1, : ids("<|endoftext|>")].softmax(-1)
    chosen = probabilities[torch.arange(len(text)), torch.tensor(text)]
    return {"seconds": seconds, "text": text, "times": (columns[jumps] / 50).tolist(), "probabilities": chosen.tolist()}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer()
    whisper, extractor = model(tokens), WhisperFeatureExtractor(feature_size=80)
    ids = tokens.token_to_id
    plain = {"condition_on_prev_tokens": False}
    prompt = tokens.encode(" hello there").ids
    cases = {
        "conditioned": (75, {"language": "en", "condition_on_prev_tokens": True}),
        "unconditioned": (75, {"language": "de", **plain}),
        "beams": (75, {"language": "en", "condition_on_prev_tokens": True, "num_beams": 5}),
        "detected, translated": (40, {"task": "translate", **plain}),
        "prompted": (75, {"language": "en", "condition_on_prev_tokens": True, "prompt": prompt}),
        "prompted once": (40, {"language": "en", "prompt": prompt, **plain}),
        "skipped": (75, {"language": "en", **plain, "logprob_threshold": -1.9, "no_speech_threshold": 0.0003}),
        "short": (9, {"language": "fr"}),
    }
    results = []
    for name, (seconds, options) in cases.items():
        given = dict(options)
        if prompt_ids := given.pop("prompt", None):
            given["prompt_ids"] = torch.tensor([ids("<|startofprev|>"), *prompt_ids])
        if "logprob_threshold" in given:
            given["temperature"] = (0.0,)
        segments = transcribed(whisper, extractor, seconds, **given)
        results.append({"name": name, "seconds": seconds, "options": options, "segments": segments})
        print(name, [(one["start"], one["end"], len(one["tokens"])) for one in segments])
    text = [token for one in results[0]["segments"][:4] for token in one["tokens"] if token < ids("<|endoftext|>")]
    reference = {"cases": results, "alignment": aligned(whisper, extractor, ids, (text + prompt)[:12])}
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token=SPECIAL[0], bos_token=SPECIAL[0], eos_token=SPECIAL[0]
    ).save_pretrained(OUT)
    whisper.save_pretrained(OUT)
    extractor.save_pretrained(OUT)
    (OUT / "reference.json").write_text(json.dumps(reference) + "\n")
    print(reference["alignment"])


main()
