#!/usr/bin/env python3
"""Measures ocelli and other programs on the same shapes in one sitting, and writes one Markdown page. See README.md.

usage: run.py [--threads N] [--rounds N] [--only WORD] [--out FILE.md]        the environment: see sitting.py"""
import sitting
from sitting import DECODE, FIRST, MODELS, PREFILL, figure, notes, number, ocelli, program, ratio, rival

PICTURE = ["--model", f"{MODELS}/smolvlm-256m", "--image-size", "512", "--prompt-tokens", "20", "--max-tokens", "65"]
TEXT = ["--model", f"{MODELS}/smolvlm-256m", "--no-image", "--prompt-tokens", "84", "--max-tokens", "65"]
QWEN = ["--model", f"{MODELS}/qwen2.5-1.5b", "--prompt-tokens", "512", "--max-tokens", "33"]
FRAME = ["--model", f"{MODELS}/smolvlm-256m", "--image-size", "224", "--prompt-tokens", "20", "--max-tokens", "20"]
Q4 = ["--quant", "q4"]
AVX2 = {"OCELLI_ISA": "avx2"}


def jobs(threads):
    """Name -> command and environment, in the order of measuring: rivals beside what they are compared with."""
    def ours(arguments, **environment):
        return ocelli("--threads", threads, *arguments, **environment)

    def llama(name, model, *counts):
        return rival(name, "rival_llama_cpp.py", f"{MODELS}/{model}-Q4_0.gguf", threads, *counts)

    def openvino(model, *counts):
        return rival("OPENVINO", "rival_openvino.py", f"{MODELS}/{model}-openvino-int4", threads, *counts)

    vision = ["512", "84", "64"]
    return {
        "ocelli picture q4": ours(PICTURE + Q4),
        "openvino picture": openvino("smolvlm-256m", *vision),
        "ocelli picture bf16": ours(PICTURE),
        "transformers picture": rival("TRANSFORMERS", "rival_transformers.py", f"{MODELS}/smolvlm-256m", threads, *vision),
        "ocelli text q4": ours(TEXT + Q4),
        "llama.cpp text": llama("LLAMA_CPP", "smolvlm-256m", "84", "64"),
        "ocelli text q4 avx2": ours(TEXT + Q4, **AVX2),
        "llama.cpp text avx2": llama("LLAMA_CPP_AVX2", "smolvlm-256m", "84", "64"),
        "ocelli qwen q4": ours(QWEN + Q4),
        "llama.cpp qwen": llama("LLAMA_CPP", "qwen2.5-1.5b", "512", "32"),
        "openvino qwen": openvino("qwen2.5-1.5b", "0", "512", "32"),
        "ocelli qwen q4 avx2": ours(QWEN + Q4, **AVX2),
        "llama.cpp qwen avx2": llama("LLAMA_CPP_AVX2", "qwen2.5-1.5b", "512", "32"),
        "ocelli frame q4": ours(FRAME + Q4),
        "ocelli frame q4, 16 tokens": ours([*FRAME, "--image-tokens", "16"] + Q4),
    }


SMOL, BIG = "SmolVLM-256M", "Qwen2.5-1.5B"
# What is compared: work, figure, ocelli's job, the rival's job.
ROWS = [
    (f"{SMOL}, 512x512 and 20 tokens: first token, ms", FIRST, "ocelli picture q4", "openvino picture"),
    (f"{SMOL}, 512x512 and 20 tokens: first token, ms", FIRST, "ocelli picture q4", "transformers picture"),
    (f"{SMOL}, the same without quantising: first token, ms", FIRST, "ocelli picture bf16", "transformers picture"),
    (f"{SMOL}, decode after a picture, tokens/s", DECODE, "ocelli picture q4", "openvino picture"),
    (f"{SMOL}, decode after a picture, not quantised, tokens/s", DECODE, "ocelli picture bf16", "transformers picture"),
    (f"{SMOL}, text: prefill of 84, tokens/s", PREFILL, "ocelli text q4", "llama.cpp text"),
    (f"{SMOL}, text: decode, tokens/s", DECODE, "ocelli text q4", "llama.cpp text"),
    (f"{SMOL}, text, AVX2: prefill of 84, tokens/s", PREFILL, "ocelli text q4 avx2", "llama.cpp text avx2"),
    (f"{SMOL}, text, AVX2: decode, tokens/s", DECODE, "ocelli text q4 avx2", "llama.cpp text avx2"),
    (f"{BIG}: prefill of 512, tokens/s", PREFILL, "ocelli qwen q4", "openvino qwen"),
    (f"{BIG}: prefill of 512, tokens/s", PREFILL, "ocelli qwen q4", "llama.cpp qwen"),
    (f"{BIG}: decode, tokens/s", DECODE, "ocelli qwen q4", "llama.cpp qwen"),
    (f"{BIG}: decode, tokens/s", DECODE, "ocelli qwen q4", "openvino qwen"),
    (f"{BIG}, AVX2: prefill of 512, tokens/s", PREFILL, "ocelli qwen q4 avx2", "llama.cpp qwen avx2"),
    (f"{BIG}, AVX2: decode, tokens/s", DECODE, "ocelli qwen q4 avx2", "llama.cpp qwen avx2"),
    (f"{SMOL}, AVX2 against the best path: decode, tokens/s", DECODE, "ocelli text q4 avx2", "ocelli text q4"),
    (f"{BIG}, AVX2 against the best path: decode, tokens/s", DECODE, "ocelli qwen q4 avx2", "ocelli qwen q4"),
]


def comparison(measured):
    yield "| work | ocelli | rival | the rival's | times as fast |\n|---|---|---|---|---|\n"
    for work, name, ours, theirs in ROWS:
        if measured.get(ours) and measured.get(theirs):
            us, them = figure(measured[ours], name), figure(measured[theirs], name)
            faster = ratio(name, us, them)
            yield f"| {work} | {number(us)} | {program(measured[theirs])} | {number(them)} | **{faster:.2f}** |\n"


def programs(measured):
    yield "\n| run | load, ms | cold | warm | peak, MiB | weights, MiB | rest, MiB | share of the limits |\n|" + "---|" * 8 + "\n"
    for name, results in measured.items():
        result = results[0]
        if "program" in result:
            yield f"| {name} | {number(result['load_ms'])} | | | {number(result['peak_mib'])} | | | |\n"
            continue
        memory, mib = result["memory"], 1 << 20
        work = [(stage, part) for stage, part in result["utilisation"].items() if part]
        shares = ", ".join(f"{stage} {100 * part['share']:.0f} % of {part['of']}" for stage, part in work)
        loads = " | ".join(number(result[key]) for key in ("load_ms", "cold_load_ms", "warm_load_ms"))
        sizes = " | ".join(number(memory[key] and memory[key] / mib) for key in ("peak_rss_bytes", "weight_bytes", "rest_bytes"))
        yield f"| {name} | {loads} | {sizes} | {shares} |\n"


def narration(measured):
    for job, shown in (("ocelli frame q4", "as a tile of 512x512"), ("ocelli frame q4, 16 tokens", "as a tile of 256x256")):
        for result in measured.get(job, []):
            spread = result["summary"]["narration_ms"]
            yield f"\nA narration of 20 tokens of one 224x224 frame {shown}, {SMOL} q4: {spread['median']:.0f} ms.\n"


def main():
    arguments = sitting.arguments(__doc__)
    measured = sitting.run(jobs(arguments.threads), arguments.rounds, arguments.only)
    page = "".join([*comparison(measured), *programs(measured), *narration(measured), *notes(measured)])
    sitting.publish(page, measured, arguments.out)


main()
