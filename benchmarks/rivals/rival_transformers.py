#!/usr/bin/env python3
"""transformers, bfloat16, another picture every time. usage: rival_transformers.py FOLDER THREADS SIDE PROMPT_TOKENS NEW_TOKENS"""
import sys
import time

import torch
import transformers

from shared import answers, picture, prompt, report

folder, (threads, side, tokens, new) = sys.argv[1], map(int, sys.argv[2:6])
torch.set_num_threads(threads)
start = time.perf_counter()
model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
processor = transformers.AutoProcessor.from_pretrained(folder)
load = time.perf_counter() - start
text, tokens = prompt(processor, side, tokens, "<|im_start|><image>")


def inputs(seed):
    given = processor(text=[text], images=[[picture(seed, side)]], return_tensors="pt")
    return {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in given.items()}


def generate(given, stamps):
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, logits_processor=[stamps])


report(f"transformers {transformers.__version__}", "bf16", load, answers(inputs, generate, new, tokens))
