# SPDX-License-Identifier: Apache-2.0
"""`vla serve`: a policy behind a websocket, in the protocol of openpi's clients. docs/serving.md is the contract.

    upgrade -> one binary frame of metadata, then for each request
    binary observation -> binary {actions, confidence, length, ...}, or a text frame of one line that says what is wrong

The event loop moves bytes; one worker thread thinks. Nothing is kept between two requests, so a client may come back on
another connection, and what a request means is in it. Nobody gets a traceback but the log.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

import vla
from vla.serve.codec import MAX_BYTES, DecodeError, pack
from vla.serve.request import Asked, Reader, RequestError, ServedPolicy
from vla.serve.settings import KEY_VARIABLE as KEY_VARIABLE
from vla.serve.settings import ServeConfig, is_here, key_of, tls_of
from vla.serve.watch import FILES, STATE, Watch, is_own_host
from vla.serve.worker import Metrics, Worker

PROTOCOL = "lattice/1"
FAULTS = 3
"""After so many failures of the policy in a row /readyz says no."""
log = logging.getLogger("vla.serve")


class PolicyServer:
    """Offers one policy. `run` listens until `stop`; `background` does so in a thread."""

    def __init__(
        self,
        policy: ServedPolicy,
        config: ServeConfig,
        about: dict[str, Any] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`about`: more for the metadata. `prepare`: what the thread that thinks does first.

        ValueError for settings that do not go together (`key_of`, `tls_of`).
        """
        if not (config.deadline_s > 0 and config.drain_s >= 0 and min(config.queue, config.clients) >= 1):
            raise ValueError("expected a positive --deadline-s, --queue and --clients, and no negative --drain-s")
        self.policy, self.config, self.about, self.prepare = policy, config, about or {}, prepare
        self.key, self.tls = key_of(config), tls_of(config)
        self.watch, self.here = Watch() if config.page else None, is_here(config.host)
        self.reader, self.metrics = Reader(policy), Metrics()
        self.faults, self.number = 0, 0
        self.listening: Future[int] = Future()
        """the port, once somebody listens to it; the exception if nobody will"""

    # --- living and dying ----------------------------------------------------------------------------------------
    async def run(self, signals: bool = False) -> None:
        """Warm up, listen until `stop`, drain. `signals`: SIGTERM and SIGINT stop too; a second one kills."""
        self.loop, self.stopping, self.worker = asyncio.get_running_loop(), asyncio.Event(), Worker(self.config.queue)
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.loop.add_signal_handler(number, self._on_signal)
        await asyncio.wrap_future(self.worker.submit(self._warm_up))
        self.hello = pack(self.metadata())
        wire = logging.getLogger("vla.serve.wire")  # websockets writes a traceback for whoever knocks and goes away
        wire.setLevel(logging.CRITICAL)
        settings: dict[str, Any] = {"max_size": MAX_BYTES, "max_queue": 1, "compression": None, "close_timeout": 3}
        # Browsers send an Origin, robots do not: no web page may reach a server on its visitor's machine.
        settings |= {"origins": [None], "process_request": self._gate, "server_header": None, "logger": wire}
        server = await listen(self._handle, self.config.host, self.config.port, ssl=self.tls, **settings)
        self.listening.set_result(next(iter(server.sockets)).getsockname()[1])
        await self.stopping.wait()
        server.close(close_connections=False)  # every handler ends by itself once it has answered
        try:
            await asyncio.wait_for(server.wait_closed(), self.config.drain_s)
        except TimeoutError:
            log.warning("%d clients did not let go in %g s", self.metrics.clients, self.config.drain_s)
        self.worker.end()

    def _on_signal(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.remove_signal_handler(number)
        log.info("stopping: finishing what is being answered")
        self.stopping.set()

    def stop(self) -> None:
        """Stop, from any thread. What is being answered still is."""
        with contextlib.suppress(RuntimeError):  # it has stopped already
            self.loop.call_soon_threadsafe(self.stopping.set)

    @contextlib.contextmanager
    def background(self) -> Iterator[int]:
        """Serve in a thread for as long as the block lasts. Yields the port; raises what kept it from listening."""

        def live() -> None:
            try:
                asyncio.run(self.run())
            except BaseException as error:
                if self.listening.done():
                    raise
                self.listening.set_exception(error)

        thread = threading.Thread(target=live, name="vla-serve", daemon=True)
        thread.start()
        port = self.listening.result()
        try:
            yield port
        finally:
            self.stop()
            thread.join()

    def _warm_up(self) -> None:
        """In the worker: every path of the network once, so that the first robot does not wait for it."""
        if self.config.threads:
            import torch

            torch.set_num_threads(self.config.threads)
        if self.prepare is not None:
            self.prepare()
        reader = self.reader
        nothing = reader.blank()
        chunk = self._decide(Asked(nothing, (0, 0), np.zeros((0, reader.actions), np.float32)))["actions"]
        try:
            self._decide(Asked(nothing, (0, 0), chunk[:1]))
        except ValueError as error:
            log.info("no real-time chunking: %s", error)
            reader.rtc = False

    def metadata(self) -> dict[str, Any]:
        """The first frame of every connection: what this policy expects and gives."""
        policy = self.policy
        return {
            "protocol": PROTOCOL,
            "server_version": vla.__version__,
            "checkpoint": Path(self.config.policy).name,
            "action_names": list(policy.action_names),
            "state_names": list(policy.state_names),
            "horizon": int(policy.horizon),
            "n_action_steps": int(policy.n_action_steps),
            "n_obs_steps": self.reader.moments,
            "fps": float(policy.fps),
            "cameras": list(policy.cameras),
            "image_size": int(policy.image_size),
            "deadline_ms": 1000.0 * self.config.deadline_s,
            "supports": ["rtc", "seed"] if self.reader.rtc else ["seed"],
            **self.about,
        }

    # --- http ----------------------------------------------------------------------------------------------------
    def _gate(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the upgrade: the pages, the key, the number of clients. None: go on with the upgrade."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if path == "/readyz":
            reason = self._unready()
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, reason or "ready\n")
        page = (path in FILES or path == STATE) and "Upgrade" not in request.headers
        if page:
            if self.watch is None:
                return connection.respond(HTTPStatus.NOT_FOUND, "this server has no page: --no-page\n")
            if self.here and not is_own_host(request.headers.get_all("Host")):
                return connection.respond(HTTPStatus.FORBIDDEN, "expected a Host of this machine itself\n")
            if path in FILES:
                return self.watch.file(path)  # it says nothing that is secret
        if self.key is not None:
            given = [value.encode("utf-8", "surrogateescape") for value in request.headers.get_all("Authorization")]
            if len(given) != 1 or not hmac.compare_digest(given[0], f"Api-Key {self.key}".encode()):
                self.metrics.errors["unauthorised"] += 1
                return connection.respond(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key <key>\n")
        if page and self.watch is not None:
            return self.watch.state(self.metadata(), self.metrics.counts())
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.text())
        if self.stopping.is_set() or self.metrics.clients >= self.config.clients:
            self.metrics.errors["full"] += 1
            reason = "the server is stopping\n" if self.stopping.is_set() else "too many clients, try again later\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, reason)
        return None

    def _unready(self) -> str:
        if self.stopping.is_set():
            return "the server is stopping\n"
        if self.worker.busy_s() > self.config.deadline_s:
            return f"the policy has been busy for {self.worker.busy_s():.1f} s\n"
        return f"the policy failed {self.faults} times in a row\n" if self.faults >= FAULTS else ""

    # --- the conversation ----------------------------------------------------------------------------------------
    async def _handle(self, connection: ServerConnection) -> None:
        self.metrics.clients += 1
        stopping = asyncio.create_task(self.stopping.wait())
        lost = asyncio.create_task(connection.wait_closed())
        try:
            await connection.send(self.hello)
            await self._converse(connection, stopping, lost)
        except ConnectionClosed as error:
            self.metrics.errors["too_big"] += error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG
        except Exception:
            log.exception("a connection failed")
            await connection.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self.metrics.clients -= 1
            stopping.cancel()
            lost.cancel()

    async def _converse(self, connection: ServerConnection, stopping: asyncio.Task, lost: asyncio.Task) -> None:
        timing: dict[str, float] = {}
        while True:
            receive = asyncio.create_task(connection.recv())
            await asyncio.wait({receive, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not receive.done():
                receive.cancel()
                await asyncio.gather(receive, return_exceptions=True)
                return await connection.close(CloseCode.GOING_AWAY, "the server is stopping")
            message, began = receive.result(), time.perf_counter()
            self.metrics.requests += 1
            self.number = number = self.number + 1  # others count on while this one waits
            reply: bytes | str
            try:
                asked = self.reader.read(message)
                answer = await self._infer(number, asked, lost)
                inferred_ms = 1e3 * (time.perf_counter() - began)
                reply = pack({**answer, "server_timing": {"infer_ms": inferred_ms, **timing}})
                self.metrics.answer(time.perf_counter() - began)
                if self.watch is not None:
                    self.watch.saw(number, asked, answer, 1e3 * (time.perf_counter() - began))
            except (DecodeError, RequestError) as error:
                reply, kind = str(error), getattr(error, "kind", "decode")
                self.metrics.errors[kind] += 1
                log.info("request %d: %s: %s", number, kind, reply)
            await connection.send(reply)
            timing = {"prev_total_ms": 1e3 * (time.perf_counter() - began)}

    async def _infer(self, number: int, asked: Asked, lost: asyncio.Task) -> dict[str, Any]:
        """Have the worker decide, in time. Raises RequestError."""
        try:
            waiting = asyncio.wrap_future(self.worker.submit(lambda: self._decide(asked)))
        except queue.Full:
            raise RequestError(
                "busy", f"the policy is busy: {self.config.queue} requests wait already; ask later"
            ) from None
        done = {waiting, lost}
        await asyncio.wait(done, timeout=self.config.deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()  # if it is being thought about already, what comes out is dropped
            if lost.done():
                raise RequestError("gone", "the client hung up")
            raise RequestError("deadline", f"no answer within the deadline of {self.config.deadline_s:g} s; ask again")
        try:
            answer = waiting.result()
        except ValueError as error:  # the policy's own boundary: an instruction that does not fit, say
            raise RequestError("observation", " ".join(str(error).split())[:300]) from None
        except Exception as error:
            self.faults += 1
            log.error("request %d: the policy failed", number, exc_info=error)
            raise RequestError(
                "policy", f"the policy failed; the server's log says why, under request {number}"
            ) from None
        self.faults = 0
        return answer

    def _decide(self, asked: Asked) -> dict[str, Any]:
        """In the worker. Every array of the reply has the leading dimension H: openpi's clients cut along it."""
        began, given = time.perf_counter(), asked.committed
        chunk = self.policy.decide([asked.observation], [asked.key], [given] if len(given) else None)
        infer_ms = 1e3 * (time.perf_counter() - began)
        actions = np.ascontiguousarray(chunk.actions_BHA[0], np.float32)
        if not np.isfinite(actions).all():
            raise FloatingPointError("the policy decided on actions that are not finite")
        same_d = (actions[: len(given)].view(np.uint32) == given.view(np.uint32)).all(1)
        return {
            "actions": actions,
            "confidence": np.ascontiguousarray(chunk.confidence_BHA[0], np.float32),
            "length": int(chunk.length_B[0]),
            "rtc/frozen_steps": int(same_d.cumprod().sum()),
            "policy_timing": {"infer_ms": infer_ms},
            **({"plan": chunk.plans[0]} if chunk.plans else {}),
        }


def serve_policy(
    policy: ServedPolicy,
    config: ServeConfig,
    about: dict[str, Any] | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Serve `policy` until SIGTERM or ctrl-c, then finish what is being answered. `config.policy` is its name; the rest
    is as in `PolicyServer`."""
    server = PolicyServer(policy, config, about, prepare)

    def say(listening: Future) -> None:
        if not listening.exception():
            scheme, host = "wss" if server.tls else "ws", f"[{config.host}]" if ":" in config.host else config.host
            guard = "with an API key" if server.key else "WITHOUT an API key"
            print(f"{Path(config.policy).name} listens on {scheme}://{host}:{listening.result()} {guard}", flush=True)

    server.listening.add_done_callback(say)
    asyncio.run(server.run(signals=True))


def serve(config: ServeConfig) -> None:
    """`vla serve`. ValueError for a checkpoint that is none, or settings that would open a robot to a network."""
    import torch

    from vla.checkpoint import CHECKSUMS, resolve
    from vla.policy import Policy
    from vla.policy.threads import choose_threads

    key_of(config)  # before the checkpoint, which takes a while
    torch.set_num_threads(1)  # of this thread: two that compute have a pool each, and these get in each other's way
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    policy = Policy.load(
        config.policy,
        device=device,
        num_inference_steps=config.num_inference_steps,
        n_action_steps=config.n_action_steps,
        seed=config.seed,
        decoding=config.decoding,
    )

    def prepare() -> None:
        if not config.threads:
            log.info("%d CPU threads", choose_threads(policy))
        if config.compile:  # for this number of threads
            policy.compile()

    sums = json.loads((resolve(config.policy) / CHECKSUMS).read_text(encoding="utf-8"))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve_policy(policy, config, {"checkpoint_sha256": sums["model.safetensors"]}, prepare)
