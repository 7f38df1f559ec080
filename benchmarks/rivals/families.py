#!/usr/bin/env python3
"""Measures model families beside the best of their rivals on the same shapes, with random weights, in one sitting, and
writes one Markdown page. See README.md.

usage: families.py [--threads N] [--rounds N] [--only WORD] [--out FILE.md]        the environment: see sitting.py

Ours holds text in 4 bits and towers in bfloat16. A rival is measured in bfloat16 and in float32; what takes long only
where its like was the best at easier work; after the first round only what was the best in some row."""
from functools import partial

import sitting
from sitting import BEAM_DECODE, BEAM_FIRST, DECODE, FIRST, LESS_IS_FASTER, MODELS, REAL_TIME, figure, notes, number, ocelli
from sitting import peak_mib, program, ratio, rival

PRECISIONS = ("bf16", "fp32")
# Answers of ours that count; one before them does not.
OUR_RUNS = "3"
# Tokens that all answer every window of 30 seconds with.
SPEECH_TOKENS = "100"
# Name (and which of its pictures) -> pixels, tokens of the prompt besides the picture's, tokens after the first, answers of a
# rival that count.
SHAPES = {"blip-base": ("384", "4", "19", "3"), "fastvlm-0.5b": ("1024", "20", "32", "2"), "moondream2": ("378", "5", "16", "1"),
          "moondream2, large": ("756", "5", "16", "1"), "blip2-opt-2.7b": ("224", "20", "16", "1"),
          "qwen2.5-vl-3b": ("448", "19", "16", "1")}
# Name -> more options, and what it may take of memory in GB, text in 4 bits.
MEMORY = {"blip2-opt-2.7b": ([], 3.0), "blip2-opt-2.7b, tower q8": (["--quant-vision", "q8"], 3.0),
          "qwen2.5-vl-7b": ([], 6.5), "deepseek-vl2-small": ([], 11.0)}
# What takes minutes or 15 GiB is asked only where its like was the best at easier work of the same parts.
LARGE, SEARCH = ["blip-base bf16", "blip-base fp32"], ["whisper 1 faster", "whisper 1 bf16", "whisper 1 fp32"]
EASIER = {"moondream2, large fp32": LARGE, "blip2-opt-2.7b fp32": LARGE, "qwen2.5-vl-3b fp32": LARGE,
          "whisper 5 bf16": SEARCH, "whisper 5 fp32": SEARCH}


def beams(name):
    return "3" if name.startswith("blip") else "1"


def ours(name, threads):
    side, tokens, new, _ = SHAPES[name]
    # Of Moondream's prompt, the token before the picture counts here, too.
    tokens = str(int(tokens) + name.startswith("moondream2"))
    return ocelli("--random-weights", name.split(",")[0], "--quant", "q4", "--threads", threads, "--image-size", side,
                  "--prompt-tokens", tokens, "--max-tokens", str(int(new) + 1), "--runs", OUR_RUNS, "--beams", beams(name))


def memory(name, threads):
    options, _ = MEMORY[name]
    return ocelli("--random-weights", name.split(",")[0], "--quant", "q4", *options, "--threads", threads, "--image-size",
                  "448", "--prompt-tokens", "19", "--max-tokens", "4", "--runs", "1", "--warmup", "0")


def theirs(name, precision, threads):
    side, tokens, new, runs = SHAPES[name]
    if name.startswith("moondream2"):
        return rival("TRANSFORMERS", "rival_moondream.py", side, precision, threads, tokens, new, runs)
    return rival("TRANSFORMERS", "rival_families.py", name, precision, threads, tokens, new, runs, beams(name))


def speech(environment, program, precision, threads, beams):
    return rival(environment, "rival_whisper.py", program, precision, f"{MODELS}/whisper", threads, beams, SPEECH_TOKENS)


def jobs(threads):
    """Name -> command and environment, in the order of measuring: rivals beside what they are compared with."""
    found = {}
    for name in SHAPES:
        found[f"{name} ocelli"] = ours(name, threads)
        for precision in PRECISIONS:
            found[f"{name} {precision}"] = theirs(name, precision, threads)
        if name == "qwen2.5-vl-3b":
            text_part = f"{MODELS}/qwen2.5-3b-Q4_0.gguf"
            found[f"{name} llama.cpp"] = rival("LLAMA_CPP", "rival_llama_cpp.py", text_part, threads, "275", "16")
    for name in MEMORY:
        found[f"{name}: memory ocelli"] = memory(name, threads)
    for count in ("1", "5"):
        # Ours needs no more of an environment than numpy.
        found[f"whisper {count} ocelli"] = speech("FASTER_WHISPER", "ocelli", "q8", threads, count)
        found[f"whisper {count} faster"] = speech("FASTER_WHISPER", "faster-whisper", "int8", threads, count)
        for precision in PRECISIONS:
            found[f"whisper {count} {precision}"] = speech("TRANSFORMERS", "transformers", precision, threads, count)
    return found


def at_most(limit, unit, us, _):
    return f"at most {limit} {unit}", us <= limit


def at_least(limit, unit, us, _):
    return f"at least {limit} {unit}", us >= limit


def times(limit, _, faster):
    return "as fast" if limit == 1 else f"{limit} times as fast", faster >= limit


def rows():
    """What is compared: work, our figure, its digits, our job, the rivals' figure, their jobs, the goals."""
    twice, as_fast = partial(times, 2), partial(times, 1)
    for name, title, first, decode in [
        ("blip-base", "BLIP base, 384x384, caption", twice, as_fast),
        ("fastvlm-0.5b", "FastVLM-0.5B, 1024x1024, 276 tokens", twice, as_fast),
        ("moondream2", "Moondream 2, 378x378, 735 tokens", twice, as_fast),
        ("moondream2, large", "Moondream 2, 756x756, 735 tokens", twice, as_fast),
        ("blip2-opt-2.7b", "BLIP-2 OPT-2.7B, 224x224, 52 tokens", twice, as_fast),
        ("qwen2.5-vl-3b", "Qwen2.5-VL-3B, 448x448, 275 tokens", partial(at_most, 1000, "ms"), partial(at_least, 16, "tokens/s")),
    ]:
        us, floats = f"{name} ocelli", [f"{name} {precision}" for precision in PRECISIONS]
        yield f"{title}: first token, ms", FIRST, 0, us, FIRST, floats, [first]
        yield f"{title}: decode, tokens/s", DECODE, 1, us, DECODE, [*floats, f"{name} llama.cpp"], [decode]
        if beams(name) != "1":
            # A prefill is the same for one beam and for three with us.
            yield f"{title}, 3 beams: first token, ms", FIRST, 0, us, BEAM_FIRST, floats, [first]
            yield f"{title}, 3 beams: decode, tokens/s", BEAM_DECODE, 1, us, BEAM_DECODE, floats, [decode]
    for count, title in (("1", "greedy"), ("5", "5 beams")):
        them = [f"whisper {count} {which}" for which in ("faster", *PRECISIONS)]
        goals = [partial(at_most, 0.1, "s"), partial(times, 1.5)]
        title = f"Whisper base, ten minutes, {title}: seconds per second of sound"
        yield title, REAL_TIME, 4, f"whisper {count} ocelli", REAL_TIME, them, goals


def best(measured, name, jobs_of_row):
    """The job with the best median of those that were measured; None where none was."""
    there = [job for job in jobs_of_row if measured.get(job)]
    order = min if name in LESS_IS_FASTER else max
    return order(there, key=lambda job: figure(measured[job], name), default=None)


def is_wanted(job, measured):
    """Whether it could be the best rival: not what was not the best in any row before, nor what EASIER says."""
    if job in EASIER and job not in measured:
        winner = best(measured, REAL_TIME if job.startswith("whisper") else FIRST, EASIER[job])
        return winner is None or winner.split()[-1] == job.split()[-1]
    if job not in measured or job.endswith("ocelli"):
        return True
    return any(best(measured, name, rivals) == job for *_, name, rivals, _ in rows())


def comparison(measured):
    yield "| work | ocelli | best rival | the rival's | times as fast | goal | met |\n|---|---:|---|---:|---:|---|---|\n"
    for work, name, digits, our_job, their_name, their_jobs, goals in rows():
        their_job = best(measured, their_name, their_jobs)
        if our_job in measured and their_job:
            us, them = figure(measured[our_job], name), figure(measured[their_job], their_name)
            faster = ratio(name, us, them)
            told, met = zip(*(goal(us, faster) for goal in goals))
            cells = [work, number(us, digits), program(measured[their_job]), number(them, digits), f"**{faster:.2f}**"]
            yield f"| {' | '.join(cells)} | {', '.join(told)} | {yes(all(met))} |\n"


def yes(is_met):
    return "yes" if is_met else "**no**"


def goals_alone(measured):
    """What ours should reach without anybody to compare with."""
    yield "\n| ocelli alone | | goal | met |\n|---|---:|---|---|\n"
    for name in SHAPES:
        job = f"{name} ocelli"
        if job in measured and beams(name) != "1":
            cost = figure(measured[job], DECODE) / figure(measured[job], BEAM_DECODE)
            yield f"| {name}: a token with 3 beams, in greedy ones | {cost:.2f} | at most 1.6 | {yes(cost <= 1.6)} |\n"
    for name, (_, limit) in MEMORY.items():
        if (job := f"{name}: memory ocelli") in measured:
            peak = peak_mib(measured[job]) * (1 << 20) / 1e9
            yield f"| {name}: peak memory, GB | {peak:.2f} | at most {limit} | {yes(peak <= limit)} |\n"


def processes(measured):
    head = "run | first token, ms | decode, tokens/s | with 3 beams | per second of sound | peak memory, MiB"
    yield f"\n| {head} |\n|{'---|' * 6}\n"
    for name, results in measured.items():
        figures = ((FIRST, 0), (DECODE, 1), (BEAM_DECODE, 1), (REAL_TIME, 4))
        cells = " | ".join(number(figure(results, key), digits) for key, digits in figures)
        yield f"| {name}: {program(results)} | {cells} | {peak_mib(results):.0f} |\n"


ABOUT = """
Medians over the rounds of medians over the answers; a process each, ours and theirs in turn. The first token counts from a
picture in memory, preparing it included. Answers have the same number of tokens on both sides, and nothing ends them early;
all programs answered every 30 seconds of speech with 100 tokens (refused otherwise). Of transformers' answers, choosing a
token is not counted. transformers has no Moondream: its rival is a plain PyTorch model of the published shapes made for
this measurement (fused attention, keys and values in place). Of a picture of 378 pixels the whole and the only crop are the
same, which ocelli encodes once and upstream, as its rival, twice; one of 756 pixels has nine crops. llama.cpp decodes the
text part alone, after as many tokens.
"""


def main():
    arguments = sitting.arguments(__doc__)
    measured = sitting.run(jobs(arguments.threads), arguments.rounds, arguments.only, is_wanted)
    page = "".join([*comparison(measured), *goals_alone(measured), *processes(measured), ABOUT, *notes(measured)])
    sitting.publish(page, measured, arguments.out)


main()
