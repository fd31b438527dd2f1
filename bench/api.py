"""What the api does on this machine: requests a second and their latency (wrk on the same machine), and its memory while a large
file goes up and comes down. A whole platform runs, `attune up` with a folder of its own; everything stays on loopback.

Prints tables on the way and, last, one JSON object a line for each figure. Started by scripts/bench-api.
"""
import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request

READS = """
local paths = { %s }
local next = 0
request = function()
  next = next %% #paths + 1
  return wrk.format("GET", paths[next])
end
"""
CREATES = """
wrk.method = "POST"
wrk.path = "/v1/fine_tuning/jobs"
wrk.body = %s
wrk.headers["Content-Type"] = "application/json"
"""
TELL = """
done = function(summary, latency, requests)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("FIGURES %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(99), failed))
end
""".replace("%%", "%")


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", required=True, help="the folder of attune and the other programs")
    parser.add_argument("--base", required=True, help="a base model's folder, for jobs to name")
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--gibibytes", type=float, default=2)
    return parser.parse_args()


class Platform:
    """`attune up` on a new folder."""

    def __init__(self, binaries, folder):
        self.attune, self.folder = pathlib.Path(binaries, "attune"), folder
        config = folder / "attune.toml"
        config.write_text("[limits]\nfile_bytes = 17179869184\nunfinished_jobs = 0\n")
        self.log = (folder / "up.log").open("w")
        self.up = subprocess.Popen([self.attune, "up", "--listen", "127.0.0.1:0", "--data", folder / "data", "--config", config,
                                    "--binaries", binaries],
                                   stdout=self.log, stderr=subprocess.STDOUT)
        credentials = folder / "data" / "credentials.json"
        deadline = time.time() + 120
        while not credentials.exists():
            assert self.up.poll() is None and time.time() < deadline, (folder / "up.log").read_text()
            time.sleep(0.2)
        time.sleep(1)
        told = json.loads(credentials.read_text())
        self.url, self.key = told["url"], told["api_key"]

    def process(self, name):
        """The id of the child of this name."""
        for line in subprocess.check_output(["ps", "--ppid", str(self.up.pid), "-o", "pid=,args="], text=True).splitlines():
            if name in line:
                return int(line.split()[0])
        raise AssertionError(f"no {name}")

    def run(self, *arguments):
        env = {**os.environ, "ATTUNE_API_URL": self.url, "ATTUNE_API_KEY": self.key}
        return json.loads(subprocess.check_output([self.attune, *arguments, "--json"], env=env, text=True))

    def call(self, path, body=None):
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(),
                                         {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def load(self, script, seconds, connections):
        """Requests a second, the 99th percentile in ms, and how many were not a success."""
        path = self.folder / "load.lua"
        path.write_text(script + TELL)
        said = subprocess.check_output(["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "-s", path, "--timeout", "10s",
                                        "-H", f"Authorization: Bearer {self.key}", self.url], text=True)
        requests, micros, p99, failed = map(int, re.search(r"FIGURES (\d+) (\d+) (\d+) (\d+)", said).groups())
        return requests / micros * 1e6, p99 / 1000, failed

    def end(self):
        self.up.send_signal(signal.SIGTERM)
        self.up.wait(60)


class Memory:
    """The resident set of a process, looked at twenty times a second."""

    def __init__(self, pid):
        self.pid, self.most, self.going = pid, 0, True
        self.before = self.now()
        self.thread = threading.Thread(target=self.watch)

    def now(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.pid}/status").read_text())[1]) / 1024

    def watch(self):
        while self.going:
            self.most = max(self.most, self.now())
            time.sleep(0.05)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()
        self.growth = self.most - self.before


def write_rows(path, length):
    """A file of chats of about `length` bytes."""
    row = json.dumps({"messages": [{"role": "user", "content": "How is the weather? " * 20},
                                   {"role": "assistant", "content": "It rains. " * 40}]}) + "\n"
    block = row.encode() * 2000
    with path.open("wb") as file:
        while file.tell() < length:
            file.write(block)


def curl(*arguments):
    return subprocess.check_output(["curl", "-sS", "--fail-with-body", *arguments])


def main():
    asked = parse()
    figures = []
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        platform = Platform(asked.binaries, pathlib.Path(folder))
        try:
            # Memory first: what a load has left to be used again would hide the growth.
            grown = memory(platform, asked)
            figures += throughput(platform, asked) + grown
        finally:
            platform.end()
    for figure in figures:
        print(json.dumps(figure))


def throughput(platform, asked):
    base = platform.run("models", "import", asked.base, "--name", "base")["id"]
    rows = platform.folder / "rows.jsonl"
    write_rows(rows, 1)
    file = platform.run("files", "upload", str(rows))["id"]
    job = {"model": "base", "training_file": file}
    made = platform.call("/v1/fine_tuning/jobs", job)["id"]
    platform.call(f"/v1/fine_tuning/jobs/{made}/cancel", {})
    paths = [f"/v1/fine_tuning/jobs/{made}", f"/v1/files/{file}", "/v1/fine_tuning/jobs?limit=1", "/v1/models/base"]
    reads = READS % ", ".join(f'"{path}"' for path in paths)
    # The scheduler would scan and train what the load creates; what is measured is the API.
    scheduler = platform.process("attune-scheduler")
    os.kill(scheduler, signal.SIGSTOP)
    try:
        platform.load(reads, 2, asked.connections)  # warm
        results = {"reads": platform.load(reads, asked.seconds, asked.connections),
                   "job_creates": platform.load(CREATES % json.dumps(json.dumps(job)), asked.seconds, asked.connections)}
    finally:
        os.kill(scheduler, signal.SIGCONT)
    print(f"{asked.connections} connections, {asked.seconds} s each, base {base}")
    figures = []
    for (name, (rate, p99, failed)), bar in zip(results.items(), (2000, 300)):
        print(f"  {name:12} {rate:8.0f}/s   p99 {p99:6.1f} ms   {failed} failed")
        figures += [{"figure": f"api_{name}_per_s", "value": round(rate), "bar": bar},
                    {"figure": f"api_{name}_p99_ms", "value": round(p99, 1), "bar": 50, "at_most": True},
                    {"figure": f"api_{name}_failed", "value": failed, "bar": 0, "at_most": True}]
    return figures


def memory(platform, asked):
    big = platform.folder / "big.jsonl"
    write_rows(big, asked.gibibytes * 2**30)
    key = f"Authorization: Bearer {platform.key}"
    api = platform.process("attune-api")
    began = time.time()
    with Memory(api) as up:
        file = json.loads(curl("-H", key, "-F", "purpose=fine-tune", "-F", f"file=@{big}", f"{platform.url}/v1/files"))
    up_seconds, began = time.time() - began, time.time()
    with Memory(api) as down:
        curl("-H", key, "-o", "/dev/null", f"{platform.url}/v1/files/{file['id']}/content")
    down_seconds = time.time() - began
    print(f"{file['bytes'] / 2**30:.2f} GiB: up in {up_seconds:.0f} s, the api grew by {up.growth:.1f} MiB; "
          f"down in {down_seconds:.0f} s, by {down.growth:.1f} MiB")
    return [{"figure": f"api_{name}_rss_growth_mib", "value": round(growth, 1), "bar": 32, "at_most": True}
            for name, growth in (("upload", up.growth), ("download", down.growth))]


main()
