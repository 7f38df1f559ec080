#!/usr/bin/env python3
"""Reference cases of beam search and penalised greedy search, made with transformers on the tiny checkpoints.

    python make_beam_cases.py FIXTURES OUT.json      # FIXTURES holds llama3/ and qwen2/

Each case is a prompt (token ids), the options, the new ids and, for beams, the score of the best one. End tokens are
chosen among those that the plain search comes across, so that some beams end inside; a case with no end token at all
tests the length limit alone.
"""
import itertools, json, random, sys

import torch
import transformers
from transformers import AutoModelForCausalLM

torch.manual_seed(0)
torch.set_num_threads(1)
fixtures, out = sys.argv[1:3]
cases = []


def run(model, ids, end_ids, options):
    early = {"false": False, "true": True, "never": "never"}[options.get("early_stopping", "false")]
    beams = options.get("num_beams", 1)
    more = {"early_stopping": early, "length_penalty": options.get("length_penalty", 1.0)} if beams > 1 else {}
    config = transformers.GenerationConfig(
        max_new_tokens=options["max_tokens"], min_new_tokens=options.get("min_tokens") or None, do_sample=False,
        num_beams=beams, repetition_penalty=options.get("repetition_penalty", 1.0),
        no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0), eos_token_id=end_ids or None, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, **more)
    model.generation_config = config
    with torch.no_grad():
        got = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    new = got.sequences[0][len(ids):].tolist()
    return new, (float(got.sequences_scores[0]) if beams > 1 else None)


for family in ["llama3", "qwen2"]:
    model = AutoModelForCausalLM.from_pretrained(f"{fixtures}/{family}", dtype=torch.float32).eval()
    pick = random.Random(family)
    vocabulary = model.config.vocab_size
    prompts = [[pick.randrange(3, vocabulary - 10) for _ in range(n)] for n in (3, 17, 40)]
    for prompt_idx, ids in enumerate(prompts):
        plain, _ = run(model, ids, [], {"max_tokens": 16, "num_beams": 4})
        greedy, _ = run(model, ids, [], {"max_tokens": 16})
        ends = [[], [plain[5]], [plain[3], greedy[2], plain[9]], sorted(set(plain[1:] + greedy[1:]))[:6]]
        grid = list(itertools.product(
            [2, 3, 5], [1.0, 0.0, 2.0, -1.0], ["false", "true", "never"], range(len(ends)), [0, 4], [0, 2]))
        pick.shuffle(grid)
        for beams, penalty, early, end_idx, least, ngram in grid[:30]:
            options = {"max_tokens": 16, "num_beams": beams, "length_penalty": penalty, "early_stopping": early}
            if least and ends[end_idx]: options["min_tokens"] = least
            if ngram: options["no_repeat_ngram_size"] = ngram
            if pick.random() < 0.2: options["repetition_penalty"] = 1.3
            new, score = run(model, ids, ends[end_idx], options)
            cases.append(dict(family=family, prompt=ids, end_ids=ends[end_idx], options=options, ids=new, score=score))
        for end_idx, extra in [(1, {}), (0, {"no_repeat_ngram_size": 2}), (3, {"min_tokens": 5}),
                               (0, {"repetition_penalty": 1.3}), (0, {"repetition_penalty": 0.8})]:
            options = {"max_tokens": 16, **extra}
            new, score = run(model, ids, ends[end_idx], options)
            cases.append(dict(family=family, prompt=ids, end_ids=ends[end_idx], options=options, ids=new, score=score))

with open(out, "w") as file:
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    file.write(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n')
ended = sum(bool(set(case["ids"]) & set(case["end_ids"])) for case in cases)
print(len(cases), "cases,", ended, "of them reach an end token")
