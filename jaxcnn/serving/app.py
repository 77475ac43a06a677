"""The HTTP of a server: what may be asked, what is refused and how, the page.

Nothing a request brings is believed: its bytes, its images and its seconds are bounded before they cost anything.
"""

import asyncio
import base64
import binascii
import hashlib
import io
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from jaxcnn.data.decoding import decode_any, fit_image, hold_back_threads, read_header
from jaxcnn.data.streaming import num_cores
from jaxcnn.files import from_json, read_text
from jaxcnn.results.explain import overlay
from jaxcnn.results.trained import TrainedModel
from jaxcnn.serving.batching import Batcher, ClosedError, FullError, LateError
from jaxcnn.serving.measures import Measures
from jaxcnn.serving.onnx_file import OnnxFile
from jaxcnn.terminal import short_line

Served = TrainedModel | OnnxFile
PROBABILITIES, EXPLANATION = "probabilities", "explanation"  # the calls of the batcher
PATHS = ("/", "/predict", "/model", "/health", "/ready", "/metrics", "/openapi.json")
_LONGEST_NAME = 200  # letters of a file's name that come back


@dataclass(frozen=True)
class Limits:
    """Bounds of a request, and of all together."""

    num_bytes: int = 16_000_000  # of a request's body
    num_pixels: int = 25_000_000  # of an image, before it is decoded
    num_images: int = 16  # of a request
    num_requests: int = 64  # that are being answered, or wait for it; one more is told to come again
    seconds: float = 30.0  # to send a request's body; and, once more, until the answer


class ClassProbability(BaseModel):
    """One of the likeliest classes."""

    name: str
    probability: float


class Prediction(BaseModel):
    """The answer to one image."""

    image: str = Field(description="the file's name, or the image's number")
    classes: list[ClassProbability] = Field(description="the likeliest first")
    explanation: str | None = Field(None, description="Grad-CAM over the image as the network saw it: data:, PNG")


class Predictions(BaseModel):
    """The answers, in the order of the images."""

    model: str
    predictions: list[Prediction]
    milliseconds: float


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["images"],
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                    "required": ["images"],
                }
            },
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the body is neither a form with files nor JSON with images as base64"},
    403: {"description": "a page of another origin asks"},
    408: {"description": "the body did not come in time"},
    413: {"description": "too many bytes, images or pixels"},
    415: {"description": "another type of content"},
    422: {"description": "an image cannot be read, or a parameter is out of range"},
    429: {"description": "too many requests at once; come again after Retry-After"},
    503: {"description": "not ready yet, or no answer in time"},
}


class Measured:
    """ASGI around the application: counts requests, their status and their seconds."""

    def __init__(self, app: Any, measures: Measures):
        self._app, self._measures = app, measures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._measures.count(path, status, time.perf_counter() - start)


def make_app(model: Served, batcher: Batcher, limits: Limits, *, explains: bool) -> FastAPI:
    """The application; the batcher is started with it, and closed with it.

    `explains`: whether the batcher has EXPLANATION beside PROBABILITIES.
    """
    measures, door, page = Measures(), _Door(limits.num_requests), _page()
    decoders = ThreadPoolExecutor(num_cores(), thread_name_prefix="decoder")
    model_name = model.name

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        hold_back_threads()
        batcher.start()
        yield
        await asyncio.to_thread(batcher.close)
        decoders.shutdown(cancel_futures=True)

    app = FastAPI(title=f"jaxcnn: {model_name}", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Measured, measures=measures)

    @app.post("/predict", response_model_exclude_none=True, responses=_REFUSALS, openapi_extra=_BODY)
    async def predict(
        request: Request,
        top_k: int = Query(5, ge=1, le=1000, description="at most so many classes"),
        explain: bool = Query(False, description="with what Grad-CAM shows"),
    ) -> Predictions:
        """The likeliest classes of each image."""
        start = time.perf_counter()
        _check_origin(request)
        if not batcher.is_ready:
            raise _not_ready(batcher)
        if explain and not explains:
            raise HTTPException(422, f"{model_name} shows no map that Grad-CAM could explain by; leave explain out")
        with door.entered():
            images = await _images_of(request, limits)
            loop = asyncio.get_running_loop()
            pixels = await asyncio.gather(
                *(loop.run_in_executor(decoders, _decoded, name, image, model, limits) for name, image in images)
            )
            values = await _answers(batcher, EXPLANATION if explain else PROBABILITIES, pixels, limits.seconds)
            measures.count_images(len(images))
            named = zip((name for name, _ in images), pixels, values, strict=True)
            predictions = await asyncio.to_thread(lambda: [_prediction(model, *each, top_k) for each in named])
        return Predictions(model=model_name, predictions=predictions, milliseconds=1000 * (time.perf_counter() - start))

    @app.get("/model")
    def facts() -> dict[str, Any]:
        """The network that answers."""
        return {
            "model": model_name,
            "image": dict(zip(("height", "width", "channels"), model.image_shape, strict=True)),
            "explains": explains,
            "class_names": list(model.class_names),
            "limits": {"bytes": limits.num_bytes, "pixels": limits.num_pixels, "images": limits.num_images},
        }

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "it is still being compiled"}})
    def ready() -> dict[str, str]:
        """Whether images are answered."""
        if not batcher.is_ready:
            raise _not_ready(batcher)
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        """For Prometheus."""
        return measures.text(ready=batcher.is_ready, waiting=batcher.num_waiting, batches=batcher.batches)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> Response:
        return page

    return app


# ---- what a request is refused for


class _Door:
    """Lets so many requests in at once."""

    def __init__(self, capacity: int):
        self._capacity, self._inside = capacity, 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        if self._inside >= self._capacity:
            raise _come_again(f"{self._inside} requests are being answered")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


def _come_again(reason: str) -> HTTPException:
    return HTTPException(429, f"{reason}; come again in a second", {"Retry-After": "1"})


def _not_ready(batcher: Batcher) -> HTTPException:
    if batcher.failure is not None:
        return HTTPException(503, "the network could not be compiled")
    return HTTPException(503, "the network is not compiled yet; come again in a second", {"Retry-After": "1"})


def _check_origin(request: Request) -> None:
    """Pages of others may not spend this machine's time: browsers say where a page comes from."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "a page of another origin may not ask")


# ---- images of a request


async def _images_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """(name, encoded bytes) of each. HTTPException says what is wrong with the request."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(limits.seconds):
            if kind == "multipart/form-data":
                images = await _of_form(request, limits)
            elif kind == "application/json":
                images = _of_json(b"".join([chunk async for chunk in _bounded(request, limits)]))
            else:
                raise HTTPException(415, "send multipart/form-data with files, or application/json")
    except ClientDisconnect:
        raise HTTPException(400, "the body ended too soon") from None
    except TimeoutError:
        raise HTTPException(408, f"the body took more than {limits.seconds:g} seconds") from None
    if not images:
        raise HTTPException(400, "there are no images; a form has files named images, JSON a list of base64")
    if len(images) > limits.num_images:
        raise HTTPException(413, f"{len(images)} images; a request has at most {limits.num_images}")
    return images


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, as it comes, as long as it is not too large."""
    too_large = HTTPException(413, f"a request has at most {limits.num_bytes:,} bytes", {"Connection": "close"})
    said, total = request.headers.get("content-length", "0"), 0
    if not said.isdecimal() or int(said[:20]) > limits.num_bytes:
        raise too_large
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.num_bytes:
            raise too_large
        yield chunk


async def _of_form(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    parser = MultiPartParser(
        request.headers, _bounded(request, limits), max_files=limits.num_images + 1, max_fields=4, max_part_size=1024
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        said = short_line(getattr(error, "message", error))
        raise HTTPException(413 if said.startswith("Too many") else 400, said) from None
    try:
        files = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
        return [((each.filename or "image")[:_LONGEST_NAME], await each.read()) for each in files]
    finally:
        await form.close()


def _of_json(body: bytes) -> list[tuple[str, bytes]]:
    wrong = HTTPException(400, 'JSON is {"images": [BASE64, …]}')
    try:
        content = from_json(body.decode())
    except ValueError:
        raise wrong from None
    encoded = content.get("images") if isinstance(content, dict) else None
    if not isinstance(encoded, list) or not all(isinstance(each, str) for each in encoded):
        raise wrong
    images = []
    for number, each in enumerate(encoded):
        text = each.partition(",")[2] if each.startswith("data:") else each
        try:
            images.append((f"image {number}", base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            raise HTTPException(400, f"image {number} is no base64") from None
    return images


def _decoded(name: str, encoded: bytes, model: Served, limits: Limits) -> np.ndarray:
    """uint8 as the network sees it. HTTPException says what is wrong with the image."""
    try:
        height, width, _ = read_header(io.BytesIO(encoded))
        if height * width > limits.num_pixels:
            raise HTTPException(
                413, f"{name}: {width:,} x {height:,} pixels; an image has at most {limits.num_pixels:,}"
            )
        pixels = decode_any(encoded, model.image_shape[2])
        return fit_image(pixels, model.image_shape, resized=model.resized)
    except HTTPException:
        raise
    except Exception as error:  # of decoders, which have errors of their own
        raise HTTPException(422, f"{name}: {short_line(error) or type(error).__name__}") from None


# ---- answers


async def _answers(batcher: Batcher, call: str, pixels: list[np.ndarray], seconds: float) -> list[Any]:
    """The call's row for each image. HTTPException where there is no room, or no answer in time."""
    try:
        futures = batcher.submit(call, pixels, seconds=seconds)
    except FullError:
        raise _come_again(f"{batcher.num_waiting} images wait") from None
    except ClosedError:
        raise _not_ready(batcher) from None
    try:
        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    except (TimeoutError, LateError):
        raise HTTPException(503, f"no answer within {seconds:g} seconds", {"Retry-After": "1"}) from None
    except ClosedError:
        raise HTTPException(503, "the server is ending") from None
    finally:
        for each in futures:
            each.cancel()


def _prediction(model: Served, name: str, image: np.ndarray, values: Any, top_k: int) -> Prediction:
    """Values are probabilities, or a heat map and logits."""
    from jaxcnn.data.sheet import png

    drawn = None
    if isinstance(values, tuple):
        from PIL import Image

        heat, logits = values
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        shown = png(Image.fromarray(overlay(image, heat)))
        drawn = f"data:image/png;base64,{base64.b64encode(shown).decode()}"
    else:
        probabilities = values
    if not np.isfinite(probabilities).all():
        raise HTTPException(422, f"{name}: the network's output is not finite for it")
    classes = [ClassProbability(name=n, probability=p) for n, p in model.likeliest(probabilities, top_k)]
    return Prediction(image=name, classes=classes, explanation=drawn)


def _page() -> Response:
    """The page, whose one script and one style are allowed by their hashes."""
    html = read_text(Path(__file__).parent / "page.html")
    digests = {}
    for tag in ("script", "style"):
        inside = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digests[tag] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src blob: data:; script-src 'sha256-{digests['script']}'; "
        f"style-src 'sha256-{digests['style']}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return HTMLResponse(html, headers=headers)
