"""The command ``listen``: a local web page that predicts a file or follows a microphone."""

import contextlib
import os
import socket
from dataclasses import dataclass

from ser_fast._require import require
from ser_fast.data.extras import import_extra
from ser_fast.prediction.live import WINDOW, Live
from ser_fast.prediction.predictor import Predictor
from ser_fast.prediction.shipped import notice
from ser_fast.reports.terminal import say

_MESSAGE = 1 << 18  # bytes of a message of the microphone; one has 10 ms


@dataclass
class ListenConfig:
    """Options of the page.

    Args:
        host: address to listen at; by default this machine alone can reach the page. The microphone of another
            machine needs https, which a proxy in front of the page has to bring.
        port: TCP port; 0 takes a free one.
        seconds: length of the window of the microphone that is predicted.

    Raises:
        ValueError: ``port`` is out of range or ``host`` is empty.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    seconds: float = WINDOW

    def __post_init__(self):
        require(bool(self.host), "host is empty", "an address or a name, such as 127.0.0.1")
        require(0 <= self.port <= 65535, f"port is {self.port}", "in 0..65535")


def listen(checkpoint: str, config: ListenConfig) -> None:
    """Serve the page until an interrupt.

    Args:
        checkpoint: as in :class:`ser_fast.prediction.predictor.Predictor`.
        config: options.

    Raises:
        ImportError: the extra "app" is not installed.
        ValueError: an option is out of range, or the port is in use.
    """
    uvicorn, *_ = (import_extra(name, "ser-fast listen", "app") for name in ("uvicorn", "starlette", "websockets"))
    from ser_fast.reports.listen_app import application

    with contextlib.closing(_bound(config)) as bound:
        predictor = Predictor(checkpoint, device="cpu")
        Live(predictor, predictor.sample_rate, config.seconds)  # may refuse the length
        app = application(predictor, config.seconds, config.host, notice(checkpoint))
        options = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws_max_size=_MESSAGE,
            limit_concurrency=32, timeout_graceful_shutdown=1,
        )  # fmt: skip
        say(f"http://{_address(config.host, bound.getsockname()[1])} predicts files and a microphone; Ctrl-C ends it")
        uvicorn.Server(options).run(sockets=[bound])


def _bound(config: ListenConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        known = error.errno is not None and error.errno > 0  # not of a name that is unknown
        reason = os.strerror(error.errno) if known else error.strerror or str(error)
        found = f"host is {config.host} and port is {config.port}"
        raise ValueError(f"{found}: {reason}; they must be an address of this machine and a free port") from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
