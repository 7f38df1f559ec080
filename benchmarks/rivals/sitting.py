"""One sitting: jobs run in turn, each in a process of its own, round after round, and their medians.

The environment says where things are: RIVALS (folder of Python environments, with `models` in it), OCELLI (the program),
TRANSFORMERS_ENV, OPENVINO_ENV, LLAMA_CPP_ENV, LLAMA_CPP_AVX2_ENV, FASTER_WHISPER_ENV (other folders of environments).
What is not there is left out, loudly."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
RIVALS = os.environ.get("RIVALS") or sys.exit("set RIVALS to the folder of the Python environments and models")
MODELS = os.path.join(RIVALS, "models")
OCELLI = os.path.abspath(os.environ.get("OCELLI", os.path.join(HERE, "../../target/release/ocelli")))
# Of answers and rivals: the time to the first token counts the other way round.
FIRST, PREFILL, DECODE = "ttft_ms", "prefill_tokens_per_second", "tokens_per_second"
BEAM_FIRST, BEAM_DECODE, REAL_TIME = "beam_ttft_ms", "beam_tokens_per_second", "real_time_factor"
LESS_IS_FASTER = (FIRST, BEAM_FIRST, REAL_TIME)


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", metavar="WORD", help="jobs whose name holds this word")
    parser.add_argument("--out", metavar="FILE.md", help="the page; FILE.md.json keeps every measurement")
    return parser.parse_args()


def ocelli(*options, **environment):
    """A job: ocelli's benchmark with these options."""
    return [OCELLI, "bench", "--json", *options], environment


def rival(environment, script, *options):
    """A job: a script of this folder in one of the Python environments."""
    folder = os.environ.get(environment + "_ENV", os.path.join(RIVALS, environment.lower().replace("_", "-")))
    return [os.path.join(folder, "bin", "python"), os.path.join(HERE, script), *options], {}


def run(jobs, rounds, only, is_wanted=lambda name, measured: True):
    """Measures all jobs (name -> command and environment) `rounds` times: name -> results. `is_wanted` is asked before each."""
    measured = {}
    for _ in range(rounds):
        for name, job in jobs.items():
            if only in name and is_wanted(name, measured) and (result := measure(name, *job)) is not None:
                measured.setdefault(name, []).append(result)
    return measured


def measure(name, command, environment):
    """The last line of what a program prints, as JSON; None, and why, where there is none."""
    if not os.path.exists(command[0]):
        print(f"SKIPPED {name}: {command[0]} is not installed", file=sys.stderr)
        return None
    start = time.perf_counter()
    # Packed weights of these checkpoints are of use to nobody else.
    environment = {"OCELLI_CACHE": os.path.join(RIVALS, "cache"), "OCELLI": OCELLI, **environment}
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode or not lines:
        print(f"FAILED {name}: {' '.join(command)}\n{ran.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def figure(results, name):
    """The median over all rounds; None where no result has it."""
    values = [result["summary"].get(name) if "summary" in result else result.get(name) for result in results]
    values = [value["median"] if isinstance(value, dict) else value for value in values if value is not None]
    return statistics.median(values) if values else None


def ratio(name, ours, theirs):
    """How many times as fast we are."""
    return theirs / ours if name in LESS_IS_FASTER else ours / theirs


def peak_mib(results):
    """The most memory that a process held in any round."""
    peaks = (result["memory"]["peak_rss_bytes"] / (1 << 20) if "memory" in result else result["peak_mib"] for result in results)
    return max(peaks)


def program(results):
    result = results[0]
    return f"{result['program']} {result['precision']}" if "program" in result else f"ocelli, {result['isa']}"


def number(value, digits=1):
    return "" if value is None else f"{value:.{digits}f}"


def notes(measured):
    """Where it was measured, how fast that machine was, and what is not to be trusted."""
    version = subprocess.run([OCELLI, "--version"], capture_output=True, text=True).stdout.strip()
    yield f"\n{version}; {processor()}, {os.cpu_count()} processors; {platform.system()}; {time.strftime('%F')}.\n"
    ours = [(name, result) for name, results in measured.items() for result in results if "load" in result]
    if ours:
        machine = ours[0][1]["machine"]
        peaks = ", ".join(f"{kind} {peak / 1e12:.3f} TOPS" for kind, peak in machine["operations_per_second"].items())
        yield f"\nLimits: {peaks}, reading {machine['read_bytes_per_second'] / 1e9:.1f} GB/s, {machine['threads']} threads.\n"
    for name, result in ours:
        if result["load"]["was_busy"] or result["load"]["was_throttled"]:
            yield f"\nNot to be trusted, the machine was busy or slowed down: {name} ({json.dumps(result['load'])}).\n"


def processor():
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
            return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def publish(page, measured, out):
    print(page)
    if out:
        with open(out, "w") as file:
            file.write(page)
        with open(out + ".json", "w") as file:
            json.dump(measured, file)
