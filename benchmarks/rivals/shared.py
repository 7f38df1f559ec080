"""What the measurements of all rivals have in common: noise, prompts of a given length, and one JSON line at the end."""
import json
import resource
import statistics
import time

import numpy as np

# Answers that count; one before them does not.
RUNS = 5


def ids(seed, count, vocab):
    return np.random.default_rng(seed).integers(10, vocab, count)


def picture(seed, side):
    from PIL import Image
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), "uint8"))


def prompt(processor, side, tokens, start):
    """A text that makes `tokens` tokens together with a picture of `side` pixels; `start` begins it (the picture)."""
    for words in range(tokens):
        text = start + " x" * words
        count = processor(text=[text], images=[[picture(0, side)]], return_tensors="pt")["input_ids"].shape[1]
        if count >= tokens:
            return text, count
    raise SystemExit("no text makes that many tokens")


class Stamps:
    """A logits processor for `generate`: notes when each token's logits were there, and whether they are numbers."""

    def __init__(self):
        self.times = []

    def __call__(self, _ids, logits):
        self.times.append(time.perf_counter())
        if len(self.times) == 1:
            assert not logits.isnan().any(), "the model does not answer with numbers"
        return logits


def answers(inputs, generate, new, prompt_tokens, runs=RUNS):
    """`generate(inputs(seed), stamps)` answers with `new + 1` tokens; the first seed's answer does not count."""
    firsts, decodes = [], []
    for seed in range(runs + 1):
        given, stamps = inputs(seed), Stamps()
        start = time.perf_counter()
        generate(given, stamps)
        assert len(stamps.times) == new + 1
        firsts.append(stamps.times[0] - start)
        decodes.append(new / (stamps.times[-1] - stamps.times[0]))
    return figures(prompt_tokens, firsts[1:], decodes[1:])


def figures(prompt_tokens, firsts, decodes):
    """Medians of seconds to the first token and of tokens per second after it."""
    first = statistics.median(firsts)
    return dict(prompt_tokens=prompt_tokens, ttft_ms=1e3 * first, prefill_tokens_per_second=prompt_tokens / first,
                tokens_per_second=statistics.median(decodes))


def report(program, precision, load_seconds, measured):
    # Of this program or of one that it ran.
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    line = dict(program=program, precision=precision, load_ms=1e3 * load_seconds, peak_mib=peak, **measured)
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}))
