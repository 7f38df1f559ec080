#!/usr/bin/env python3
"""Measures ocelli and other programs on the same shapes in one sitting, and writes one Markdown page. See README.md.

usage: run.py [--threads N] [--rounds N] [--only WORD] [--out FILE.md]

The environment says where things are: RIVALS (folder with `models`), OCELLI (the program), TRANSFORMERS_ENV, OPENVINO_ENV,
LLAMA_CPP_ENV, LLAMA_CPP_AVX2_ENV (folders of Python environments). What is not there is left out, loudly."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
RIVALS = os.environ.get("RIVALS") or sys.exit("set RIVALS to the folder of the Python environments and models")
MODELS = os.path.join(RIVALS, "models")
OCELLI = os.environ.get("OCELLI", os.path.join(HERE, "../../target/release/ocelli"))
PICTURE = ["--model", f"{MODELS}/smolvlm-256m", "--image-size", "512", "--prompt-tokens", "20", "--max-tokens", "65"]
TEXT = ["--model", f"{MODELS}/smolvlm-256m", "--no-image", "--prompt-tokens", "84", "--max-tokens", "65"]
QWEN = ["--model", f"{MODELS}/qwen2.5-1.5b", "--prompt-tokens", "512", "--max-tokens", "33"]
FRAME = ["--model", f"{MODELS}/smolvlm-256m", "--image-size", "224", "--prompt-tokens", "20", "--max-tokens", "20"]
Q4 = ["--quant", "q4"]
AVX2 = {"OCELLI_ISA": "avx2"}


def python(name, script, *arguments):
    """A rival's command in its environment; None where that is not installed."""
    folder = os.environ.get(name + "_ENV", os.path.join(RIVALS, name.lower().replace("_", "-")))
    program = os.path.join(folder, "bin", "python")
    return [program, os.path.join(HERE, script), *arguments] if os.path.exists(program) else None


def jobs(threads):
    """Name -> command and environment, in the order of measuring: rivals beside what they are compared with."""
    def ocelli(arguments, environment=None):
        return [OCELLI, "bench", "--threads", threads, "--json", *arguments], environment or {}

    def llama(name, model, *counts):
        return python(name, "rival_llama_cpp.py", f"{MODELS}/{model}-Q4_0.gguf", threads, *counts), {}

    vision = ["512", "84", "64"]
    return {
        "ocelli picture q4": ocelli(PICTURE + Q4),
        "openvino picture": (python("OPENVINO", "rival_openvino.py", f"{MODELS}/smolvlm-256m-openvino-int4", threads, *vision), {}),
        "ocelli picture bf16": ocelli(PICTURE),
        "transformers picture": (python("TRANSFORMERS", "rival_transformers.py", f"{MODELS}/smolvlm-256m", threads, *vision), {}),
        "ocelli text q4": ocelli(TEXT + Q4),
        "llama.cpp text": llama("LLAMA_CPP", "smolvlm-256m", "84", "64"),
        "ocelli text q4 avx2": ocelli(TEXT + Q4, AVX2),
        "llama.cpp text avx2": llama("LLAMA_CPP_AVX2", "smolvlm-256m", "84", "64"),
        "ocelli qwen q4": ocelli(QWEN + Q4),
        "llama.cpp qwen": llama("LLAMA_CPP", "qwen2.5-1.5b", "512", "32"),
        "openvino qwen": (python("OPENVINO", "rival_openvino.py", f"{MODELS}/qwen2.5-1.5b-openvino-int4", threads, "0", "512", "32"), {}),
        "ocelli qwen q4 avx2": ocelli(QWEN + Q4, AVX2),
        "llama.cpp qwen avx2": llama("LLAMA_CPP_AVX2", "qwen2.5-1.5b", "512", "32"),
        "ocelli frame q4": ocelli(FRAME + Q4),
    }


SMOL, BIG = "SmolVLM-256M", "Qwen2.5-1.5B"
FIRST, PREFILL, DECODE = "ttft_ms", "prefill_tokens_per_second", "tokens_per_second"
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


def measure(name, command, environment):
    """The last line of what a program prints, as JSON; None, and why, where there is none."""
    if command is None or not os.path.exists(command[0]):
        print(f"SKIPPED {name}: not installed", file=sys.stderr)
        return None
    start = time.perf_counter()
    # Packed weights of these checkpoints are of use to nobody else.
    environment = {"OCELLI_CACHE": os.path.join(RIVALS, "cache"), **environment}
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode or not lines:
        print(f"FAILED {name}: {' '.join(command)}\n{ran.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def figure(results, name):
    """The median over all rounds."""
    values = [result["summary"][name]["median"] if "summary" in result else result[name] for result in results]
    return statistics.median(values)


def program(results):
    result = results[0]
    return f"{result['program']} {result['precision']}" if "program" in result else f"ocelli, {result['isa']}"


def number(value, digits=1):
    return "" if value is None else f"{value:.{digits}f}"


def comparison(measured):
    yield "| work | ocelli | rival | the rival's | times as fast |\n|---|---|---|---|---|\n"
    for work, name, ours, theirs in ROWS:
        if measured.get(ours) and measured.get(theirs):
            us, them = figure(measured[ours], name), figure(measured[theirs], name)
            ratio = them / us if name == FIRST else us / them
            yield f"| {work} | {number(us)} | {program(measured[theirs])} | {number(them)} | **{ratio:.2f}** |\n"


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


def notes(measured):
    ours = [(name, result) for name, results in measured.items() for result in results if "load" in result]
    if ours:
        machine = ours[0][1]["machine"]
        peaks = ", ".join(f"{kind} {peak / 1e12:.3f} TOPS" for kind, peak in machine["operations_per_second"].items())
        yield f"\nLimits: {peaks}, reading {machine['read_bytes_per_second'] / 1e9:.1f} GB/s, {machine['threads']} threads.\n"
    for name, result in ours:
        if result["summary"].get("narration_ms") and "frame" in name:
            spread = result["summary"]["narration_ms"]
            yield f"\nA narration of 20 tokens of one 224x224 frame, {SMOL} q4: {spread['median']:.0f} ms.\n"
        if result["load"]["was_busy"] or result["load"]["was_throttled"]:
            yield f"\nNot to be trusted, the machine was busy or slowed down: {name} ({json.dumps(result['load'])}).\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="jobs whose name holds this word")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    measured = {}
    for _ in range(arguments.rounds):
        for name, (command, environment) in jobs(arguments.threads).items():
            result = measure(name, command, environment) if arguments.only in name else None
            if result is not None:
                measured.setdefault(name, []).append(result)
    page = "".join([*comparison(measured), *programs(measured), *notes(measured)])
    print(page)
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(page)
        with open(arguments.out + ".json", "w") as file:
            json.dump(measured, file)


main()
