# SPDX-License-Identifier: Apache-2.0
"""Asks a policy server: openpi's protocol, with the time-outs that a robot needs.

    with PolicyClient("127.0.0.1", 8000) as client:
        reply = client.infer({"observation/front": image, "observation/state": state, "prompt": "push the red block"})

Needs numpy, msgpack and websockets alone, neither torch nor a checkpoint. Whatever happens, `infer` returns or raises
in time, and what it returns is the reply to what was asked.
"""

import contextlib
import logging
import re
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vla.serve.codec import MAX_BYTES, DecodeError, pack, unpack

log = logging.getLogger("vla.client")

IDENTITY = ("action_names", "state_names", "horizon", "fps", "cameras", "image_size", "n_obs_steps")
"""Metadata that must not change while a client lives: a robot must not change its policy in mid-air."""
HOPELESS = (400, 401, 403, 404, 426)
"""HTTP answers to the handshake that waiting does not mend."""


class PolicyUnavailable(ConnectionError):  # noqa: N818
    """There is no server, it hung up, or it is not one for us. Later it may be there again."""


class PolicyTimeout(PolicyUnavailable, TimeoutError):  # noqa: N818
    """No reply in time. The connection was dropped, so a late reply is never taken for the next one."""


class PolicyError(RuntimeError):
    """What the server says is wrong with the request, one line. The connection goes on."""


class PolicyClient:
    """One connection, made when it is needed, and made again when it broke. Threads take turns."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = 8000,
        api_key: str | None = None,
        *,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 5.0,
        first_pause_s: float = 0.05,
        longest_pause_s: float = 1.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`host`: a name, an address, or a URL ("wss://name"), to which `port` is added unless it is None.

        `timeout_s`: of a request, from call to reply. `connect_timeout_s`: to be connected, all tries together; between
        two tries there is a pause, doubled from `first_pause_s` to `longest_pause_s`. `tls`: whom to trust with wss
        (None: whom the system trusts). Does not go through a proxy, whatever the environment says.

        Connects later. ValueError for times that are not positive, a URL or a key that is none.
        """
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ValueError(
                f"expected an API key of printable ASCII without spaces, got {len(api_key)} other characters"
            )
        times = (timeout_s, connect_timeout_s, first_pause_s, longest_pause_s)
        if not all(value > 0 for value in times):
            raise ValueError(f"expected times above 0 s, got {times}")
        url = host if "://" in host else f"ws://[{host}]" if ":" in host else f"ws://{host}"
        self.url = url if port is None else f"{url}:{port}"
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"expected a host, or a URL with ws:// or wss://, got {host!r} and the port {port}")
        self.timeout_s, self.connect_timeout_s = timeout_s, connect_timeout_s
        self.first_pause_s, self.longest_pause_s = first_pause_s, longest_pause_s
        self._address = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "wss" else None
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._turn = threading.Lock()
        self._socket: ClientConnection | None = None
        self._about: dict[str, Any] | None = None
        self._closed = threading.Event()

    # --- what one calls ------------------------------------------------------------------------------------------
    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of its policy: action_names, horizon, fps, cameras, ... Connects if need be."""
        with self._turn:
            if self._about is None:
                self._connected(time.monotonic() + self.connect_timeout_s)
            assert self._about is not None
            return dict(self._about)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request: {"actions": float32 (H, A), "confidence": float32 (H, A), "length": int, ...}.

        `observation`: {"observation/<camera>": uint8 (S, S, 3), "observation/state": float32 (S,), "prompt": text}, and
        what else docs/serving.md lists; with the last M moments of both for a policy that sees as many (metadata:
        n_obs_steps). A connection that broke is made again and the request sent once more: the server keeps nothing, so
        nothing happens twice.

        Raises PolicyTimeout after `timeout_s` (and up to `connect_timeout_s` more where it must connect first),
        PolicyUnavailable without a server, PolicyError for what the server refuses, ValueError for what cannot be sent.
        """
        frame = pack(observation)
        with self._turn:
            fresh = self._socket is None
            deadline = time.monotonic() + self.timeout_s + (self.connect_timeout_s if fresh else 0)
            while True:
                connection = self._connected(min(deadline, time.monotonic() + self.connect_timeout_s))
                try:
                    reply = self._exchange(connection, frame, min(deadline, time.monotonic() + self.timeout_s))
                    break
                except (ConnectionClosed, OSError) as error:
                    if isinstance(error, PolicyTimeout):
                        raise
                    if fresh or self._closed.is_set():
                        raise PolicyUnavailable(f"{self.url} hung up instead of a reply: {_line(error)}") from None
                    fresh = True  # it may have been dead for long
            return self._read(reply)

    def close(self) -> None:
        """Hang up, for good; also from another thread, whose `infer` then raises PolicyUnavailable."""
        self._closed.set()
        if self._turn.acquire(blocking=False):
            try:
                connection, self._socket = self._socket, None
                if connection is not None:
                    connection.close()
            finally:
                self._turn.release()
        elif (connection := self._socket) is not None:
            _cut(connection)  # whose turn it is drops it

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the connection ------------------------------------------------------------------------------------------
    def _connected(self, deadline: float) -> ClientConnection:
        """The connection, made if need be until `deadline` (monotonic s). Raises PolicyUnavailable."""
        if self._closed.is_set():
            raise PolicyUnavailable("this client is closed: make a new one")
        if self._socket is not None:
            return self._socket
        pause = self.first_pause_s
        while True:
            try:
                self._connect(max(0.001, deadline - time.monotonic()))
                assert self._socket is not None
                return self._socket
            except PolicyUnavailable:
                self._drop()
                raise
            except (OSError, InvalidHandshake, ConnectionClosed, DecodeError) as error:  # TimeoutError is an OSError
                self._drop()
                if isinstance(error, InvalidStatus) and error.response.status_code in HOPELESS:
                    status, body = error.response.status_code, error.response.body or b""
                    raise PolicyUnavailable(
                        f"{self.url} refuses us with HTTP {status}: {_line(body.decode('utf-8', 'replace'))}"
                    ) from None
                if time.monotonic() + pause >= deadline:
                    raise PolicyUnavailable(
                        f"expected a policy server at {self.url} within {self.connect_timeout_s:g} s, got: "
                        f"{_line(error)}; is `vla serve` running there?"
                    ) from None
            except BaseException:
                self._drop()
                raise
            if self._closed.wait(pause):
                raise PolicyUnavailable("this client was closed while it tried to connect")
            pause = min(2 * pause, self.longest_pause_s)

    def _connect(self, left_s: float) -> None:
        """Once. The first frame is the metadata."""
        deadline = time.monotonic() + left_s
        plain = socket.create_connection(self._address, timeout=left_s)  # ours: websockets would look for a proxy
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings: dict[str, Any] = {"ssl": self._tls, "server_hostname": self._address[0]} if self._tls else {}
        self._socket = connect(
            self.url,
            sock=plain,
            compression=None,
            max_size=MAX_BYTES,
            additional_headers=self._headers,
            open_timeout=max(0.001, deadline - time.monotonic()),
            close_timeout=0.2,
            **settings,
        )
        hello = self._socket.recv(timeout=max(0.001, deadline - time.monotonic()))
        about = unpack(hello, text_arrays=True) if isinstance(hello, bytes) else None
        if not isinstance(about, dict):
            raise PolicyUnavailable(
                f"expected metadata as a dict from {self.url}, got something else: no policy server"
            )
        if self._about is not None and (other := [k for k in IDENTITY if about.get(k) != self._about.get(k)]):
            raise PolicyUnavailable(
                f"{self.url} serves another policy now, with {other[0]} {about.get(other[0])!r} instead of "
                f"{self._about.get(other[0])!r}; make a new PolicyClient if that is meant"
            )
        if self._closed.is_set():
            raise PolicyUnavailable("this client was closed while it connected")
        log.info("connected to %s", self.url)
        self._about = about

    def _exchange(self, connection: ClientConnection, frame: bytes, deadline: float) -> str | bytes:
        """Send and receive. A timer cuts the line: sending to a server that does not read has no time-out otherwise."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _cut(connection)

        timer = threading.Timer(max(0.001, deadline - time.monotonic()), expire)
        timer.daemon = True
        timer.start()
        try:
            connection.send(frame)
            return connection.recv()
        except BaseException as error:  # ctrl-c, too: the reply to come must not be taken for the next one
            self._drop()
            if not expired.is_set() or not isinstance(error, Exception):
                raise
            raise PolicyTimeout(
                f"no reply from {self.url} in {self.timeout_s:g} s; the connection is dropped"
            ) from None
        finally:
            timer.cancel()

    def _read(self, reply: str | bytes) -> dict[str, Any]:
        if isinstance(reply, str):
            raise PolicyError(_line(reply))
        try:
            values = unpack(reply, text_arrays=True)
        except DecodeError as error:
            self._drop()
            raise PolicyUnavailable(f"{self.url} sent a reply that is none: {error}") from None
        if not isinstance(values, dict) or not isinstance(values.get("actions"), np.ndarray):
            self._drop()
            raise PolicyUnavailable(f"expected a reply with an array of actions from {self.url}, got something else")
        return values

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            _cut(connection)
            connection.close()


def _cut(connection: ClientConnection) -> None:
    """At once, from any thread: whoever sends or receives on it wakes up."""
    with contextlib.suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
