#!/usr/bin/env python3
"""OpenVINO on an exported folder: with SIDE 0 a text model through GenAI, else a picture of that side through optimum.
usage: rival_openvino.py FOLDER THREADS SIDE PROMPT_TOKENS NEW_TOKENS"""
import sys
import time

import openvino

from shared import RUNS, answers, figures, ids, picture, prompt, report

folder, (threads, side, tokens, new) = sys.argv[1], map(int, sys.argv[2:6])


def with_pictures():
    import transformers
    from optimum.intel import OVModelForVisualCausalLM

    start = time.perf_counter()
    model = OVModelForVisualCausalLM.from_pretrained(folder, ov_config={"INFERENCE_NUM_THREADS": str(threads)})
    processor = transformers.AutoProcessor.from_pretrained(folder)
    load = time.perf_counter() - start
    text, count = prompt(processor, side, tokens, "<|im_start|><image>")

    def inputs(seed):
        return processor(text=[text], images=[[picture(seed, side)]], return_tensors="pt")

    def generate(given, stamps):
        model.generate(**given, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, logits_processor=[stamps])

    return load, answers(inputs, generate, new, count)


def text_only():
    import numpy
    import openvino_genai

    start = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)
    load = time.perf_counter() - start
    how = openvino_genai.GenerationConfig()
    how.max_new_tokens = how.min_new_tokens = new + 1
    how.do_sample, how.ignore_eos, how.apply_chat_template = False, True, False
    metrics = []
    for seed in range(RUNS + 1):
        row = ids(seed, tokens, 10_000).astype("int64")[None]
        given = openvino_genai.TokenizedInputs(openvino.Tensor(row), openvino.Tensor(numpy.ones_like(row)))
        metrics.append(pipeline.generate(given, how).perf_metrics)
    firsts = [metric.get_ttft().mean / 1e3 for metric in metrics[1:]]
    return load, figures(tokens, firsts, [1e3 / metric.get_tpot().mean for metric in metrics[1:]])


report(f"OpenVINO {openvino.__version__.split('-')[0]}", "int4", *(with_pictures() if side else text_only()))
