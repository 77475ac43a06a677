"""A load test of the server, over loopback: python -m benchmarks.serving --workdir DIR [--write docs/serving.md]

Starts `python -m jaxcnn.serve`, a process of its own, with the network of --workdir, or of --init_from and --model.
Clients ask again as soon as they are answered: requests a second, median and 99th percentile. Then more ask at once
than may: each must be answered, by 200 with the same classes, by 429 or 503; any other answer, or none, ends in 1.
"""

import http.client
import io
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Others, Report, Table, begin, machine, make_parser, say, set_up

MARKER = "<!-- benchmarks.serving -->"
BOUNDARY = "0f3b5c"


def photograph(side: int) -> bytes:
    """A JPEG that is neither flat nor noise, as large as a picture in a page."""
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
    target = io.BytesIO()
    coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(target, format="JPEG", quality=90)
    return target.getvalue()


def body_of(image: bytes) -> bytes:
    """A form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


class Client:
    """A connection that is kept."""

    def __init__(self, url: str):
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)

    def ask(self, body: bytes) -> tuple[int | str, bytes]:
        """(status, or what went wrong; the answer)."""
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        try:
            self._connection.request("POST", "/predict?top_k=5", body, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__, b""


def in_threads(count: int, work: Any) -> None:
    """Runs `work` so many times at once."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def steady(url: str, body: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that ask again as soon as they are answered."""
    taken, codes, end = list[float](), Counter[Any](), time.perf_counter() + seconds

    def work() -> None:
        client = Client(url)
        while time.perf_counter() < end:
            start = time.perf_counter()
            codes[client.ask(body)[0]] += 1
            taken.append(time.perf_counter() - start)

    start = time.perf_counter()
    in_threads(clients, work)
    passed = time.perf_counter() - start
    return {
        "clients": clients,
        "requests_per_second": len(taken) / passed,
        "median_ms": 1000 * statistics.median(taken),
        "p99_ms": 1000 * float(np.quantile(taken, 0.99)),
        "answers": {str(code): number for code, number in codes.items()},
    }


def burst(url: str, body: bytes, clients: int, each: int) -> dict[str, Any]:
    """So many clients at once, each with some requests; what each was answered."""
    codes, classes = Counter[Any](), Counter[str]()
    barrier = threading.Barrier(clients)

    def work() -> None:
        client = Client(url)
        barrier.wait()
        for _ in range(each):
            code, answer = client.ask(body)
            codes[code] += 1
            if code == 200:
                classes["".join(re.findall(r'"name":"([^"]*)"', answer.decode()))] += 1

    start = time.perf_counter()
    in_threads(clients, work)
    answers = {str(code): number for code, number in codes.items()}
    return {
        "clients": clients, "requests": clients * each, "seconds": time.perf_counter() - start, "answers": answers,
        "lost": clients * each - sum(codes[code] for code in (200, 429, 503)), "different_answers": len(classes),
    }  # fmt: skip


def server(arguments: list[str]) -> tuple[subprocess.Popen[str], str, float]:
    """(the process, its URL, seconds until it was ready)."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "jaxcnn.serve", "--port=0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"on (http://\S+);", process.stdout.readline())
    if found is None:
        raise SystemExit(f"the server ended with {process.wait()}")
    while True:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(found[1]).netloc, timeout=60)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return process, found[1], time.perf_counter() - start
        except OSError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        time.sleep(0.1)


def main() -> None:
    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--workdir", help="a run's folder")
    parser.add_argument("--init_from", help="instead: weights, as jaxcnn.serve has them")
    parser.add_argument("--model", help="whose weights they are")
    parser.add_argument("--side", type=int, default=375, help="of the photograph that is sent, in pixels")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each steady load")
    parser.add_argument("--clients", default="1,4,16", help="comma-separated, of the steady loads")
    parser.add_argument("--burst", type=int, default=400, help="clients that ask at once; each asks twice")
    parser.add_argument("--write", type=Path, help=f"the page whose {MARKER} table is replaced")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("workdir", "init_from", "model") if getattr(options, name)}
    if not given:
        raise SystemExit("no network given; pass --workdir, or --init_from and --model")
    set_up(options, torch_here=False)
    report, others, body = Report(options.json, "serving"), Others(), body_of(photograph(options.side))
    process, url, ready = server([f"--{name}={value}" for name, value in given.items()])
    try:
        table = Table(clients=8, requests_a_second=18, median_ms=12, p99_ms=12)
        rows = []
        for clients in map(int, options.clients.split(",")):
            found = steady(url, body, clients, options.seconds)
            rows.append([clients, *(f"{found[key]:.1f}" for key in ("requests_per_second", "median_ms", "p99_ms"))])
            table.row(*rows[-1])
            report.add(**found)
        overload = burst(url, body, options.burst, 2)
        report.add(**overload)
    finally:
        process.terminate()
        code = process.wait(120)
    answers = ", ".join(f"{number} x {code}" for code, number in sorted(overload["answers"].items()))
    said = (
        f"{overload['requests']} requests of {options.burst} clients at once, within {overload['seconds']:.1f} s: "
        f"{answers}; {overload['lost']} lost; the server then ended with {code}"
    )
    say(said)
    if options.write:
        model, here, width = given.get("model") or Path(given["workdir"]).name, machine(), options.side * 4 // 3
        lines = [
            f"`{model}` on {here['cores']} cores of {here['cpu']}, which the clients share; ready after {ready:.1f} s.",
            f"A JPEG of {width} x {options.side} pixels a request, {options.seconds:g} seconds each; meanwhile other",
            f"processes took {100 * (others.share() or 0):.0f} % of the cores' time.",
            "",
            "| clients | requests a second | median, ms | 99 %, ms |",
            "|---|---|---|---|",
            *(f"| {' | '.join(map(str, row))} |" for row in rows),
            "",
            f"Overload: {said}.",
        ]
        before, _, after = options.write.read_text().partition(MARKER)
        after = after.partition(MARKER)[2] or after
        options.write.write_text(f"{before}{MARKER}\n" + "\n".join(lines) + f"\n{MARKER}{after}")
    report.finish()
    others.warn()
    if overload["lost"] or overload["different_answers"] > 1 or code:
        raise SystemExit(1)


if __name__ == "__main__":
    begin(main)
