#!/usr/bin/env python3
"""llama.cpp's library, without Python's work between the tokens but one call each; text only.
usage: rival_llama_cpp.py MODEL.gguf THREADS PROMPT_TOKENS NEW_TOKENS"""
import sys
import time

import llama_cpp

from shared import RUNS, figures, ids, report

path, (threads, tokens, new) = sys.argv[1], map(int, sys.argv[2:5])
llama_cpp.llama_backend_init()
how = llama_cpp.llama_context_default_params()
how.n_ctx = tokens + new + 64
how.n_batch = how.n_ubatch = max(512, tokens)
how.n_threads = how.n_threads_batch = threads
start = time.perf_counter()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
context = llama_cpp.llama_init_from_model(model, how)
load = time.perf_counter() - start


def decode(row):
    # The batch points to the array, which therefore must have a name.
    array = (llama_cpp.llama_token * len(row))(*row)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(row))) == 0
    llama_cpp.llama_get_logits_ith(context, -1)


def prompt(seed):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    return ids(seed, tokens, 30_000).tolist()


firsts, decodes = [], []
for seed in range(RUNS + 1):
    row = prompt(seed)
    start = time.perf_counter()
    decode(row)
    first = time.perf_counter()
    for number in range(new):
        decode([100 + number])
    firsts.append(first - start)
    decodes.append(new / (time.perf_counter() - first))
version = llama_cpp.__version__
report(f"llama.cpp (package {version})", "Q4_0", load, figures(tokens, firsts[1:], decodes[1:]))
