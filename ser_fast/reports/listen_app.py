"""The web application of ``ser-fast listen``: a page, a file's prediction, and a microphone over a WebSocket.

It stores nothing and logs no contents. It answers its own page alone: see :class:`SameOrigin`.
"""

import asyncio
import base64
import ipaddress
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import numpy as np
import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from torch import Tensor

from ser_fast._require import require
from ser_fast.data.audio import open_audio, read_audio
from ser_fast.data.flags import FLAGS, UNPREDICTED
from ser_fast.data.sources import Bytes
from ser_fast.data.wav import AudioError
from ser_fast.prediction.live import Live, Update
from ser_fast.prediction.predictor import PredictionError, Predictor
from ser_fast.reports import figures, media

FILES = {
    "": ("listen.html", "text/html"),
    "listen.css": ("listen.css", "text/css"),
    "listen.js": ("listen.js", "text/javascript"),
    "microphone.js": ("microphone.js", "text/javascript"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ROWS = 64  # of the live spectrogram
LOUD, QUIET = -20.0, -100.0  # ends of its colours, in decibels below a sine of full scale


class Limits(NamedTuple):
    """Limits of a file: bytes, seconds, hertz, and the seconds in which it must arrive."""

    size: int = 50_000_000
    seconds: float = 60.0
    rate: int = 192_000
    wait: float = 60.0


LIMITS = Limits()


class SameOrigin:
    """Refuses requests that come from the page of another site, and adds the headers of :data:`HEADERS`.

    A site whose name was made to point to this machine (DNS rebinding) is known by the ``Host`` header, which must be
    an address, ``localhost`` or the name that was given; a request across sites by the ``Origin`` header, which must
    name the same host and port. A client without an ``Origin``, which is no browser, is served.

    Args:
        app: the application.
        host: name or address by which it is reached.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.names = app, {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse a request."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if reason := self._refusal(Headers(scope=scope)):
            return await PlainTextResponse(reason, 403)(scope, receive, with_headers)
        await self.app(scope, receive, with_headers)

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            own = origin is None or urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return "The header Host or Origin is no address."
        if not (name in self.names or _is_address(name)):
            return "The header Host must be localhost, an address, or the name that was given as --host."
        return "" if own else "The header Origin must name this host: another site may not use this page."


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def application(
    predictor: Predictor, seconds: float, host: str = "localhost", about: str = "", limits: Limits = LIMITS
) -> Starlette:
    """Return the web application.

    Args:
        predictor: the model, on the CPU.
        seconds: length of the window of the microphone that is predicted.
        host: name or address by which it is reached.
        about: sentence about the model that the page shows.
        limits: of a file.
    """
    listener = Listener(predictor, seconds, about, limits)
    routes = [Route(f"/{path}", _static(*file)) for path, file in FILES.items()]
    routes += [
        Route("/model", listener.model),
        Route("/file", listener.file, methods=["POST"]),
        WebSocketRoute("/live", listener.live),
    ]
    return Starlette(routes=routes, middleware=[Middleware(SameOrigin, host=host)])


def _static(name: str, kind: str):
    text = (Path(__file__).parent / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(text, media_type=kind)

    return answer


class Listener:
    """Answers the requests of the page; arguments as in :func:`application`."""

    def __init__(self, predictor: Predictor, seconds: float, about: str, limits: Limits):
        self.predictor, self.window, self.about, self.limits = predictor, seconds, about, limits
        front = predictor.model.spectrogram
        self._log_power = figures.log_power(front)
        # Power of a sine of full scale in its bin.
        self._full_scale = 20 * np.log10(float(self._log_power.window.sum()) / 2)
        self._uploads, self._computing = asyncio.Semaphore(1), threading.Lock()
        self._following = False

    async def model(self, request: Request) -> Response:
        """Return what the page needs to know of the model."""
        front = self.predictor.model.spectrogram
        found = {
            "names": self.predictor.names, "classes": bool(self.predictor.classes), "about": self.about,
            "flags": FLAGS, "size": self.limits.size, "seconds": self.limits.seconds, "window": self.window,
            "rows": ROWS, "hop": front.hop_length / front.sample_rate, "colours": _text(media.COLOURS.tobytes()),
        }  # fmt: skip
        return JSONResponse(found)

    async def file(self, request: Request) -> Response:
        """Return the prediction of an audio file, which is the body of the request."""
        declared = request.headers.get("content-length", "")
        if declared.isdigit():
            self._check_size(int(declared))
        async with self._uploads:  # one file is in memory at a time
            try:
                with anyio.fail_after(self.limits.wait):
                    data = b"".join([chunk async for chunk in self._chunks(request)])
            except TimeoutError as error:
                raise HTTPException(408, f"The file did not arrive within {self.limits.wait:g} s.") from error
            except ClientDisconnect as error:
                raise HTTPException(400, "The file did not arrive whole.") from error
            return JSONResponse(await run_in_threadpool(self._predicted, data))

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            self._check_size(size)
            yield chunk

    def _check_size(self, size: int) -> None:
        if size > self.limits.size:
            raise HTTPException(413, f"The file has more than {self.limits.size / 1e6:g} MB.")

    def _predicted(self, data: bytes) -> dict:
        source = Bytes("the file", data)
        try:
            with open_audio(source) as (file, _, last):
                rate, seconds = file.samplerate, last / file.samplerate
            longest = f"at most {self.limits.seconds:g} s; for longer files use `ser-fast predict --segment`"
            require(seconds <= self.limits.seconds, f"the file has {seconds:.1f} s", longest, AudioError)
            highest = f"at most {self.limits.rate} Hz"
            require(rate <= self.limits.rate, f"its sample rate is {rate} Hz", highest, AudioError)
            wave = read_audio(source, self.predictor.sample_rate)
            clip = self.predictor.reader().clip(wave, source)
        except AudioError as error:
            raise HTTPException(400, str(error)) from error
        found = self._answer(clip.seconds, clip.flag, None)
        with self._computing:
            if clip.samples is not None:
                output = self.predictor.predict([wave])[0]
                if isinstance(output, PredictionError):
                    raise HTTPException(422, str(output))
                found["values"] = output.values
                found["attention"] = _curve(media.attention(self.predictor.model, wave))
            if not UNPREDICTED.intersection(clip.flag.split()):
                picture = media.picture(self.predictor.model.spectrogram, wave)
                found["picture"] = [_text(picture.jpeg), *picture[1:]]
        return found

    async def live(self, socket: WebSocket) -> None:
        """Follow a microphone: chunks of float32 come, and updates go, until the page ends it."""
        await socket.accept()
        if self._following:  # two would double the delay of both
            return await socket.close(1013, "Another page follows a microphone.")
        self._following = True
        try:
            rate = socket.query_params.get("rate", "")
            require(rate.isdecimal(), f"rate is {rate[:20]!r}", "a sample rate in hertz")
            live = Live(self.predictor, int(rate[:9]), self.window, spectrogram=self._log_power)
            await self._follow(socket, live)
        except ValueError as error:
            await socket.close(1007, str(error)[:120])
        finally:
            self._following = False

    async def _follow(self, socket: WebSocket, live: Live) -> None:
        """Push what comes while a task computes the updates, which skip to the newest window."""
        due = asyncio.Event()
        answering = asyncio.create_task(self._answer_all(socket, live, due))
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                data = message.get("bytes") or b""
                require(len(data) > 0 and len(data) % 4 == 0, f"{len(data)} bytes came", "float32 samples")
                live.push(np.frombuffer(data, "<f4"))
                if live.due:
                    due.set()
                if answering.done():  # the page has gone, or the model failed
                    return answering.result()
        finally:
            answering.cancel()

    async def _answer_all(self, socket: WebSocket, live: Live, due: asyncio.Event) -> None:
        while True:
            await due.wait()
            due.clear()
            update = await run_in_threadpool(self._update, live)
            if update is None:
                continue
            try:
                await socket.send_text(json.dumps(self._shown(update)))
            except (WebSocketDisconnect, RuntimeError):  # it was closed meanwhile
                return

    def _update(self, live: Live) -> Update | None:
        with self._computing:
            return live.update()

    def _shown(self, update: Update) -> dict:
        attention = None if update.weights is None else media.curve(self.predictor.model, update.weights)
        return self._answer(update.seconds, update.flag, update.values) | {
            "samples": update.samples,
            "work": round(1e3 * update.work, 2),
            "frames": _text(self._levels(update.frames)),
            "attention": _curve(attention),
        }

    def _answer(self, seconds: float, flag: str, values: list[float] | None) -> dict:
        return {"seconds": seconds, "flags": flag.split(), "values": values, "picture": None, "attention": None}

    def _levels(self, frames: Tensor) -> bytes:
        """Return frames of the logarithm of the power as :data:`ROWS` colours each, from high frequencies to low."""
        if len(frames) == 0:
            return b""
        decibel = torch.nn.functional.adaptive_avg_pool1d(frames, ROWS).flip(1) * (10 / np.log(10)) - self._full_scale
        return ((decibel - QUIET) * (255 / (LOUD - QUIET))).clamp(0, 255).to(torch.uint8).numpy().tobytes()


def _curve(curve: media.Curve | None) -> list | None:
    return None if curve is None else [_text(curve.levels), *curve[1:]]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
