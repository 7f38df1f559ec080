#!/usr/bin/env python3
"""transformers with random bfloat16 weights of a published BLIP's shapes: those that `ocelli bench --random-weights` has.

usage: rival_blip.py blip-base|blip-vqa-base|blip2-opt-2.7b THREADS PROMPT_TOKENS NEW_TOKENS [BEAMS]

Prints one line for greedy decoding and, with BEAMS, one for a search with so many."""
import json
import os
import sys
import time

import torch
import transformers

from shared import answers, ids, report

name, (threads, tokens, new) = sys.argv[1], map(int, sys.argv[2:5])
beams = int(sys.argv[5]) if len(sys.argv) > 5 else 1
torch.set_num_threads(threads)
torch.set_default_dtype(torch.bfloat16)
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "../../crates/engine/src/bench/published", name + ".json")) as file:
    settings = json.load(file)["config.json"]
config = transformers.AutoConfig.for_model(**settings)
start = time.perf_counter()
model = getattr(transformers, settings["architectures"][0])(config).eval()
load = time.perf_counter() - start
side = config.vision_config.image_size
queries = config.num_query_tokens if settings["model_type"] == "blip-2" else 0


def inputs(seed):
    """A picture and a prompt; BLIP-2's begins with the picture's tokens."""
    torch.manual_seed(seed)
    text = torch.tensor(ids(seed, tokens, 20_000)).unsqueeze(0)
    pictured = torch.full((1, queries), config.image_token_index if queries else 0)
    given = dict(pixel_values=torch.randn(1, 3, side, side), input_ids=torch.cat([pictured, text], 1))
    return {**given, "attention_mask": torch.ones_like(given["input_ids"])}


def generate(num_beams):
    def run(given, stamps):
        with torch.inference_mode():
            model.generate(**given, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, num_beams=num_beams,
                           logits_processor=[stamps])
    return run


for count in sorted({1, beams}):
    program = f"transformers {transformers.__version__}, {count} beam{'s' * (count > 1)}"
    report(program, "bf16", load, answers(inputs, generate(count), new, queries + tokens))
