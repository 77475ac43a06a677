"""What a server counts, in Prometheus's text format."""

import threading
from collections import Counter
from collections.abc import Mapping

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds; requests that took at most


class Measures:
    """Requests by path and status, their seconds, and images; counted from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within: Counter[float] = Counter()
        self._seconds, self._images = 0.0, 0

    def count(self, path: str, status: int, seconds: float) -> None:
        """One request that was answered; only those of /predict are timed."""
        with self._lock:
            self._requests[path, status] += 1
            if path == "/predict":
                self._seconds += seconds
                self._within[next((bound for bound in _BOUNDS if seconds <= bound), float("inf"))] += 1

    def count_images(self, number: int) -> None:
        """Images that were answered."""
        with self._lock:
            self._images += number

    def text(self, *, ready: bool, waiting: int, batches: Mapping[int, int]) -> str:
        """All of it, with what else is known at this moment: `batches`, how many of each size."""
        with self._lock:
            requests, within = dict(self._requests), dict(self._within)
            seconds, images = self._seconds, self._images
        lines = ["# HELP jaxcnn_requests_total Requests that were answered.", "# TYPE jaxcnn_requests_total counter"]
        for (path, status), number in sorted(requests.items()):
            lines.append(f'jaxcnn_requests_total{{path="{path}",status="{status}"}} {number}')
        lines += [
            "# HELP jaxcnn_request_seconds Seconds from a request's first line to its answer, of /predict.",
            "# TYPE jaxcnn_request_seconds histogram",
        ]
        total = 0
        for bound in (*_BOUNDS, float("inf")):
            total += within.get(bound, 0)
            label = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'jaxcnn_request_seconds_bucket{{le="{label}"}} {total}')
        lines += [f"jaxcnn_request_seconds_sum {seconds:.6f}", f"jaxcnn_request_seconds_count {total}"]
        for name, kind, what, value in (
            ("images_total", "counter", "Images that were answered.", images),
            ("waiting_images", "gauge", "Images that wait for the network.", waiting),
            ("ready", "gauge", "1 once the network is compiled.", int(ready)),
        ):
            lines += [f"# HELP jaxcnn_{name} {what}", f"# TYPE jaxcnn_{name} {kind}", f"jaxcnn_{name} {value}"]
        lines += ["# HELP jaxcnn_batches_total Batches by their size.", "# TYPE jaxcnn_batches_total counter"]
        lines += [f'jaxcnn_batches_total{{size="{size}"}} {number}' for size, number in batches.items()]
        return "\n".join(lines) + "\n"
