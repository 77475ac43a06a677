"""Google Cloud Storage in memory: as much of its JSON API as gcsfs, google-cloud-storage and TensorStore speak."""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

_ROUTE = re.compile(
    r"(/upload|/download|)/storage/v1/b/([^/]+)(?:/(o)(?:/([^/]+)(?:/(copyTo|rewriteTo|moveTo)(?:/b/([^/]+))?/o/([^/]+))?)?)?"
)
_CONDITIONS = {"ifGenerationMatch", "ifGenerationNotMatch"}
_BLOCK = 256 * 1024  # what the chunks of a resumable upload are multiples of, the last one excepted


@dataclass(frozen=True)
class Stored:
    """One generation of one object."""

    bucket: str
    name: str
    data: bytes
    content_type: str
    generation: int

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    def resource(self) -> dict[str, Any]:
        """What the API tells of it."""
        seconds, micros = divmod(self.generation, 10**6)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{micros // 1000:03d}Z"
        return {
            "kind": "storage#object", "id": f"{self.bucket}/{self.name}/{self.generation}", "bucket": self.bucket,
            "name": self.name, "generation": str(self.generation), "metageneration": "1", "etag": self.md5,
            "size": str(len(self.data)), "contentType": self.content_type, "md5Hash": self.md5,
            "storageClass": "STANDARD", "timeCreated": stamp, "updated": stamp, "timeStorageClassUpdated": stamp,
        }  # fmt: skip


class RefusedError(Exception):
    """The answer is this code."""

    def __init__(self, code: int, message: str = ""):
        super().__init__(message)
        self.code = code


class FakeGcs(ThreadingHTTPServer):
    """Serves one bucket at `url` inside a `with`; what it should serve but cannot is listed in `problems`.

    Another one, "private", is there but denied; and no others.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bucket: str = "bucket", *, page: int = 1000):
        """`page`: how many entries of a listing one answer holds at most."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bucket, self.page = bucket, page
        self.lock = threading.RLock()
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}  # resumable ones under way
        self.problems: list[str] = []
        self._generation = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # whoever was killed hangs up
            self.problems.append(repr(sys.exception()))

    def new_generation(self) -> int:
        """Microseconds since 1970, as the real ones are, and always more than the one before."""
        with self.lock:
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            return self._generation

    def check(self, name: str, conditions: Mapping[str, str]) -> None:
        """Refuses unless the preconditions hold; to them an object that does not exist is of generation 0."""
        generation = str(self.objects[name].generation) if name in self.objects else "0"
        if conditions.get("ifGenerationMatch", generation) != generation:
            raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")
        if conditions.get("ifGenerationNotMatch") == generation:
            raise RefusedError(304)

    def put(self, name: str, data: bytes, kind: str = "text/plain", *, conditions: Mapping[str, str] = {}) -> Stored:
        with self.lock:
            self.check(name, conditions)
            self.objects[name] = Stored(self.bucket, name, data, kind, self.new_generation())
            return self.objects[name]

    def get(self, name: str, conditions: Mapping[str, str] = {}, generation: str | None = None) -> Stored:
        with self.lock:
            found = self.objects.get(name)
            if found is None or generation not in (None, str(found.generation)):
                raise RefusedError(404, f"No such object: {self.bucket}/{name}")
            self.check(name, conditions)
            return found

    def delete(self, name: str, query: Mapping[str, str]) -> None:
        with self.lock:
            self.get(name, query, query.get("generation"))
            del self.objects[name]

    def copy(self, name: str, new: str, query: Mapping[str, str], *, move: bool) -> dict[str, Any]:
        """Copies or renames; the preconditions are the target's."""
        with self.lock:
            found = self.get(name, generation=query.get("sourceGeneration"))
            made = self.put(new, found.data, found.content_type, conditions=query)
            if move and name != new:
                del self.objects[name]
            return made.resource()

    def listing(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of the objects in the order of their names; all that share a folder are one prefix."""
        prefix, delimiter, end = query.get("prefix", ""), query.get("delimiter", ""), query.get("endOffset")
        after = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        entries: dict[str, Stored | None] = {}
        with self.lock:
            for name, each in sorted(self.objects.items()):
                if name.startswith(prefix) and query.get("startOffset", "") <= name and (not end or name < end):
                    cut = name.find(delimiter, len(prefix)) if delimiter else -1
                    entries.setdefault(name if cut < 0 else name[: cut + len(delimiter)], each if cut < 0 else None)
        rest = [name for name in entries if name > after]
        shown = rest[: min(int(query.get("maxResults", self.page)), self.page)]
        page: dict[str, Any] = {"kind": "storage#objects"}
        page["items"] = [each.resource() for each in map(entries.get, shown) if each]
        page["prefixes"] = [name for name in shown if entries[name] is None]
        if len(shown) < len(rest):
            page["nextPageToken"] = base64.urlsafe_b64encode(shown[-1].encode()).decode()
        return {key: value for key, value in page.items() if value}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the head and the body of an answer are 40 ms apart
    server: FakeGcs

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        try:
            self._route(url.path, dict(parse_qsl(url.query, keep_blank_values=True)), body)
        except RefusedError as refused:
            if refused.code == 501:
                self.server.problems.append(f"{self.command} {self.path}: {refused}")
            self._answer(refused.code, {"error": {"code": refused.code, "message": str(refused)}})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(
        self, code: int, content: bytes | dict[str, Any] = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        body = b"" if code in (204, 304) else body
        self.send_response(code)
        for name, value in {"Content-Type": "application/json; charset=UTF-8", **(headers or {})}.items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        store, match = self.server, _ROUTE.fullmatch(path)
        if not match or {key for key in query if re.match("if[A-Z]", key)} - _CONDITIONS:
            raise RefusedError(501, "not part of this fake")
        service, bucket, objects, name, verb, target, new = (unquote(part or "") for part in match.groups())
        if bucket == "private":
            raise RefusedError(401, "Anonymous caller does not have storage.objects.get access,\nor it may not exist.")
        if bucket != store.bucket or target not in ("", bucket):
            raise RefusedError(404, "The specified bucket does not exist.")
        match (self.command, service, bool(objects), bool(name), verb):
            case ("GET", "", False, _, _):
                self._answer(200, {"kind": "storage#bucket", "id": bucket, "name": bucket})
            case ("GET", "", True, False, _):
                self._answer(200, store.listing(query))
            case ("GET", "" | "/download", True, True, "") if query.get("alt") == "media":
                self._download(store.get(name, query, query.get("generation")))
            case ("GET", "", True, True, ""):
                self._answer(200, store.get(name, query, query.get("generation")).resource())
            case ("DELETE", "", True, True, ""):
                store.delete(name, query)
                self._answer(204)
            case ("POST", "", True, True, "copyTo" | "moveTo"):
                self._answer(200, store.copy(name, new, query, move=verb == "moveTo"))
            case ("POST", "", True, True, "rewriteTo"):
                made = store.copy(name, new, query, move=False)
                sizes = {"objectSize": made["size"], "totalBytesRewritten": made["size"]}
                self._answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": made, **sizes})
            case ("DELETE", "/upload", True, False, _):
                self._answer(499 if store.uploads.pop(query.get("upload_id", ""), None) else 404)
            case ("POST" | "PUT", "/upload", True, False, _):
                self._upload(query, body, self.headers.get("Content-Type", "application/octet-stream"))
            case _:
                raise RefusedError(501, "not part of this fake")

    def _download(self, found: Stored) -> None:
        headers = {"X-Goog-Generation": str(found.generation), "X-Goog-Hash": f"md5={found.md5}", "ETag": found.md5}
        headers["Content-Type"] = found.content_type
        size, code, begin, end = len(found.data), 200, 0, len(found.data)
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            begin = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            end = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            if begin >= size:
                raise RefusedError(416, "The requested range cannot be satisfied.")
            code, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{size}"
        self._answer(code, found.data[begin:end], headers)

    def _upload(self, query: dict[str, str], body: bytes, kind: str) -> None:
        store, way = self.server, query.get("uploadType")
        if "upload_id" in query:
            self._upload_chunk(query["upload_id"], body)
        elif way == "media":
            self._answer(200, store.put(query["name"], body, kind, conditions=query).resource())
        elif way == "multipart":  # two parts, each a head, an empty line and content: JSON, then the object
            mark = b"--" + re.findall(r'boundary="?([^";]+)', kind)[0].encode()
            line = b"\r\n" if body.startswith(mark + b"\r\n") else b"\n"
            about, _, second = body.partition(line * 2)[2].partition(line + mark)
            head, _, data = second.partition(line * 2)
            kind = re.findall(r"(?i)content-type: *([^\r\n]+)", head.decode())[0]
            name = json.loads(about).get("name") or query["name"]
            data = data[: data.rindex(line + mark + b"--")]
            self._answer(200, store.put(name, data, kind, conditions=query).resource())
        elif way == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            key = str(store.new_generation())
            store.uploads[key] = name, self.headers.get("X-Upload-Content-Type", kind), query, bytearray()
            place = f"{store.url}/upload/storage/v1/b/{store.bucket}/o?uploadType=resumable&upload_id={key}"
            self._answer(200, headers={"Location": place})
        else:
            raise RefusedError(501, f"uploadType={way}")

    def _upload_chunk(self, key: str, body: bytes) -> None:
        if key not in self.server.uploads:
            raise RefusedError(404, "no such upload")
        name, kind, query, held = self.server.uploads[key]
        place = self.headers.get("Content-Range", f"bytes 0-/{len(body)}")  # without one it is the whole object
        first, total = re.findall(r"bytes (?:(\d+)-\d*|\*)/(\d+|\*)", place)[0]
        if first and int(first) != len(held):
            raise RefusedError(400, "the chunk does not follow the one before it")
        held += body
        if total == str(len(held)):
            del self.server.uploads[key]
            self._answer(200, self.server.put(name, bytes(held), kind, conditions=query).resource())
        elif len(body) % _BLOCK:
            raise RefusedError(400, "a chunk before the last one must be a multiple of 256 KiB")
        else:
            self._answer(308, headers={"Range": f"bytes=0-{len(held) - 1}"} if held else {})
