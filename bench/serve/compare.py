#!/usr/bin/env python3
"""Measures serving, and compares it with llama.cpp and with transformers + PEFT, in turn on the same machine.

Every measure of ours starts a real attune-serving and talks HTTP to it (serving/examples/bench_serve). Prints medians with
their spread, then a figure a line as JSON: {"figure": ..., "value": ..., "bar": ...}, with "at_most": true where lower is
better; a bar of null has no limit. Exits with 1 if a bar is missed, a figure is missing, or a part failed, whose error is
printed before the figures of the others.

Parts:
  rates     decoding and prefill in turn with the peers; copied text with and without drafts
  accuracy  the perplexity and the logits of a base that is computed from its codes
  adapters  throughput with 1, 8, 32 and 128 active adapters, and with the base alone
  load      times to the first token and per token at 50, 80 and 95 % of the capacity
  flood     the latency of one project while another one floods the replica
  memory    of the base, and of 128 adapters
  start     from the start of the process to the first token
  loads     of adapters from disk and from the object store
  soak      an hour at 80 % of the capacity; only if it is named, or with --soak

Only the standard library. scripts/bench-serve sets everything up and calls this.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts/lib"))
from figures import report

# The time limit of a measure without soak, in seconds.
LIMIT = 900
# The text whose perplexity is measured, and the number of its tokens: no base was trained on it.
HELD_OUT, HELD_OUT_TOKENS = ["README.md", "docs/ARCHITECTURE.md"], 8192


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer-python", required=True, help="a Python that has the peers' packages")
    p.add_argument("--binaries", required=True, type=pathlib.Path, help="the folder of attune-serving, and of examples/bench_serve")
    p.add_argument("--base", required=True, help="the base model, a Hugging Face folder")
    p.add_argument("--blocks", required=True, help="the base model with blocks of Q4_0, a Hugging Face folder")
    p.add_argument("--gguf", required=True, action="append", help="the base model for llama.cpp; the best of several counts")
    p.add_argument("--scratch", required=True, help="an existing folder; 8 GB are written below it, and removed")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3, help="rounds of the rates, the peers next to ours")
    p.add_argument("--soak", action="store_true", help="the part soak in addition")
    p.add_argument("--soak-minutes", type=float, default=60)
    p.add_argument("parts", nargs="*", metavar="PART", help="default: all but soak")
    a = p.parse_args()
    for name in a.parts:
        if name not in PARTS:
            p.error(f"{name} is not one of {', '.join(PARTS)}")
    a.parts = (a.parts or [name for name in PARTS if name != "soak"]) + ["soak"] * a.soak
    return a


class Bench:
    """Runs programs, and collects figures (name, value, bar, whether lower is better)."""

    def __init__(self, a, scratch):
        self.a, self.scratch, self.figures = a, scratch, []
        # attune-serving sets the policy itself; the peers have a libtorch of their own.
        self.ours = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        self.peers = {key: value for key, value in self.ours.items() if key != "LD_LIBRARY_PATH"}

    def run(self, name, command, environment, limit=LIMIT):
        start = time.time()
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=limit)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or not lines:
            command = " ".join(map(str, command))
            raise RuntimeError(f"{name} failed (exit status {done.returncode}): {command}\n{done.stderr[-2000:]}")
        print(f"  {name:24} {time.time() - start:6.1f} s", flush=True)
        return json.loads(lines[-1])

    def log(self):
        """The end of the last replica's log, which is removed with the scratch folder."""
        path = self.scratch / "serving.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def bases(self):
        """The bases whose rates and accuracy are measured: the folder and the quantization, by name."""
        return {"nf4-double": (self.a.base, "nf4-double"), "q4_0": (self.a.blocks, "none"), "int8": (self.a.base, "int8")}

    def measure(self, name, *options, served="nf4-double", limit=LIMIT):
        a = self.a
        base, quantization = self.bases()[served]
        command = [a.binaries / "examples/bench_serve", "--serving", a.binaries / "attune-serving", "--base", base,
                   "--quantization", quantization, "--scratch", self.scratch, "--threads", str(a.threads), name, *options]
        return self.run(f"attune {served}, {name}", command, self.ours, limit)

    def peer(self, name, *options):
        command = [self.a.peer_python, f"bench/serve/{name}", "--threads", str(self.a.threads), *options]
        return self.run(name.removesuffix(".py"), command, self.peers)

    def at_least(self, name, value, bar=None):
        self.figures.append((name, rounded(value), bar, False))

    def at_most(self, name, value, bar=None):
        self.figures.append((name, rounded(value), bar, True))


def rounded(value):
    return None if value is None else float(f"{value:.4g}")


def percentile(values, share):
    """The nearest-rank percentile, as in bench_serve."""
    values = sorted(values)
    return values[max(0, -int(-share * len(values) // 1) - 1)]


def spread(values):
    return f"{statistics.median(values):9.2f}  ({min(values):.2f} to {max(values):.2f})"


def row(name, values):
    print(f"{name:68}{spread(values)}")


def best_of(settings):
    """The names of the settings that are the best in some rate, as options."""
    rates = next(iter(settings.values()))
    return [f"--setting={name}" for name in sorted({max(settings, key=lambda one: settings[one][rate]) for rate in rates})]


def rates(bench):
    """Rounds of ours and the peers' in turn. The peers run in their best settings, which one more run of theirs finds."""
    ours, blocks, llama, peft = [], [], [], []
    adapter = str(bench.scratch / "adapters/0")
    for number in range(bench.a.rounds):
        print(f"round {number + 1} of {bench.a.rounds}", flush=True)
        ours.append(bench.measure("rates"))  # writes the adapter
        blocks.append(bench.measure("rates", served="q4_0"))
        if number == 0:
            for_llama = best_of(bench.peer("peer_llama.py", "--short", *bench.a.gguf)["settings"])
            for_peft = best_of(bench.peer("peer_transformers.py", bench.a.base, adapter)["settings"])
        llama.append(bench.peer("peer_llama.py", *for_llama, *bench.a.gguf)["settings"])
        peft.append(bench.peer("peer_transformers.py", *for_peft, bench.a.base, adapter)["settings"])
    print(f"\n{'tokens per second, median of the rounds':60}")
    for name, rounds in [("nf4-double", ours), ("q4_0", blocks)]:
        for rate in rounds[0]:
            row(f"attune {name}: {rate}", [one[rate] for one in rounds])
    for peer, rounds in [("llama.cpp", llama), ("PEFT", peft)]:
        for setting, rates_of in rounds[0].items():
            for rate in rates_of:
                row(f"{peer} {setting}: {rate}", [one[setting][rate] for one in rounds])

    def our(rate, rounds=ours):
        return statistics.median(one[rate] for one in rounds)

    def best(rounds, rate):
        return max(statistics.median(one[setting][rate] for one in rounds) for setting in rounds[0])

    for figure, rate in [("decode_ratio_llama_cpp_1", "decode_tokens_per_s_1"), ("decode_ratio_llama_cpp_8", "decode_tokens_per_s_8"),
                         ("prefill_ratio_llama_cpp", "prefill_tokens_per_s")]:
        bench.at_least(f"serve_{figure}", our(rate) / best(llama, rate), 1.0)
        bench.at_least(f"serve_{figure}_same_weights", our(rate, blocks) / best(llama, rate), 1.0)
    for batch in ["1", "8"]:
        rate = f"adapter_decode_tokens_per_s_{batch}"
        bench.at_least(f"serve_decode_ratio_peft_{batch}", our(rate) / best(peft, rate), 5.0)
    bench.at_least("serve_copied_text_ratio", our("copied_tokens_per_s") / our("copied_tokens_per_s_without_drafts"), 1.5)


def accuracy(bench):
    """A base that is computed from its codes, over the same base in f32."""
    ids = bench.scratch / "ids.json"
    command = [bench.a.peer_python, "bench/serve/token_ids.py", "--count", str(HELD_OUT_TOKENS), bench.a.base, ids, *HELD_OUT]
    count = bench.run("tokens", command, bench.peers)["tokens"]
    for served, (base, quantization) in bench.bases().items():
        command = [bench.a.binaries / "examples/bench_served", base, "--quantization", quantization, "--hold", "codes",
                   "--threads", str(bench.a.threads), "--prompt", "16", "--tokens", "4", "--ids", ids]
        got = bench.run(f"attune {served}", command, bench.ours)
        print(f"\nperplexity of {count} tokens, {served}: {got['perplexity']:.3f} from codes, {got['perplexity_f32']:.3f} in f32")
        name = served.replace("-", "_")
        bench.at_most(f"serve_perplexity_difference_{name}", abs(got["perplexity"] / got["perplexity_f32"] - 1), 0.005)
        # As CODES_BAR of serving/tests/it/trained.rs, of the root mean square.
        bench.at_most(f"serve_logits_difference_{name}", got["logits_from_f32"], 0.05)


def adapters(bench):
    got = bench.measure("adapters")
    print("\ntokens per second of a full replica, by active adapters")
    for name, values in got.items():
        row(name, values)
    # Each round against the base in the same round.
    for name, values in got.items():
        if name != "base":
            ratios = [value / base for value, base in zip(values, got["base"])]
            bench.at_least(f"serve_throughput_ratio_{name}", statistics.median(ratios), 0.8 if name.endswith("_32") else None)


def load(bench):
    got = bench.measure("load")
    print(f"\ncapacity: {got['capacity_requests_per_s']:.2f} requests per second; objective: first token within "
          f"{got['objective_s'][0]} s, {got['objective_s'][1]} s per token after it")
    errors = []
    for one in got["loads"]:
        percent = round(100 * one["share"])
        errors += one["errors"]
        print(f"at {percent} %: {one['requests']} requests, {len(one['errors'])} errors, "
              f"{100 * one['good_share']:.1f} % within the objective, {one['goodput_requests_per_s']:.2f} of those per second")
        for time_name in ["ttft", "tpot"]:
            for p in ["p50", "p99"]:
                bench.at_most(f"serve_{time_name}_{p}_s_at_{percent}", one[f"{time_name}_s"][p])
        bench.at_least(f"serve_goodput_requests_per_s_at_{percent}", one["goodput_requests_per_s"])
        # 90 % is the attainment that DistServe's goodput is defined by (Zhong et al., arXiv:2401.09670, section 2).
        bench.at_least(f"serve_good_share_at_{percent}", one["good_share"], 0.9 if percent == 80 else None)
    for error in sorted(set(errors)):
        print(f"  error: {error}")
    bench.at_most("serve_load_errors", len(errors), 0)


def flood(bench):
    got = bench.measure("flood")
    alone, flooded = percentile(got["alone_s"], 0.95), percentile(got["flooded_s"], 0.95)
    print("\nseconds of a request of one project, one after another")
    row("alone", got["alone_s"])
    row("under another project's flood", got["flooded_s"])
    bench.at_most("serve_flood_p95_ratio", flooded / alone, 1.5)


def memory(bench):
    """A merged copy has the base's shapes, so the base from its codes is one; times their number."""
    got = bench.measure("memory")
    program = got["program_mib"]
    copy = got["codes_mib"] - program
    copies = got["adapters"] * copy
    together = got["with_adapters_mib"] - program
    print(f"\nresident MiB: the program {program:.0f}; in addition, the base in f32 {got['f32_mib'] - program:.0f}, from its codes "
          f"{copy:.0f}, with {got['adapters']} adapters {together:.0f}; {got['adapters']} merged copies {copies:.0f} (one measured, times "
          f"{got['adapters']})")
    bench.at_most("serve_base_memory_ratio", copy / (got["f32_mib"] - program), 0.25)
    bench.at_most("serve_adapters_memory_ratio", together / copies, 0.25)


def start(bench):
    got = bench.measure("start")
    print("\nseconds from the start of the process to the first token")
    row("with the base in the disk cache", got["starts_s"])
    print(f"  the program {got['program_s']:.2f}, the base {got['load_s']:.2f}, the first request {got['first_token_s']:.2f}; "
          f"with an empty disk cache {got['empty_cache_s']:.2f}")
    bench.at_most("serve_cold_start_s", statistics.median(got["starts_s"]), 2.0)
    for part in ["program", "load", "first_token"]:
        bench.at_most(f"serve_cold_start_{part}_s", got[f"{part}_s"])


def loads(bench):
    got = bench.measure("loads")
    print(f"\nseconds of a request for one token, by the place of its adapter ({got['adapter_bytes'] / 1e6:.1f} MB; the store waits "
          f"{got['store_delay_s']} s before each file)")
    for place in ["store", "disk", "memory"]:
        row(place, got[f"{place}_s"])
    bench.at_most("serve_adapter_load_p95_s_disk", percentile(got["disk_s"], 0.95), 0.1)
    bench.at_most("serve_adapter_load_p95_s_store", percentile(got["store_s"], 0.95), 1.0)


def soak(bench):
    minutes = bench.a.soak_minutes
    got = bench.measure("soak", "--minutes", str(minutes), limit=60 * minutes + LIMIT)
    early, late = got["resident_mib_early"], got["resident_mib_late"]
    print(f"\n{minutes:g} minutes: {got['requests']} requests, {len(got['errors'])} errors, {early:.0f} MiB early and {late:.0f} late")
    for error in sorted(set(got["errors"])):
        print(f"  error: {error}")
    bench.at_most("serve_soak_errors", len(got["errors"]), 0)
    # Two percent: the spread of samples whose number of running answers differs.
    bench.at_most("serve_soak_memory_ratio", late / early, 1.02)


PARTS = {"rates": rates, "accuracy": accuracy, "adapters": adapters, "load": load, "flood": flood, "memory": memory,
         "start": start, "loads": loads, "soak": soak}


def main():
    a = arguments()
    failed = []
    with tempfile.TemporaryDirectory(prefix="bench-serve.", dir=a.scratch) as scratch:
        bench = Bench(a, pathlib.Path(scratch))
        for name, part in PARTS.items():
            if name not in a.parts:
                continue
            begun = time.time()
            print(f"\n== {name} ==", flush=True)
            try:
                part(bench)
            except Exception:  # the other parts have figures too
                failed.append(name)
                print(traceback.format_exc(), bench.log(), flush=True)
            print(f"{name}: {time.time() - begun:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    print()
    met = report(bench.figures)
    sys.exit(0 if met and not failed else 1)


if __name__ == "__main__":
    main()
