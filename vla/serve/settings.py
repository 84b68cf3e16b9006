# SPDX-License-Identifier: Apache-2.0
"""What `vla serve` is told, and which of it would open a robot to a network."""

import ipaddress
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

KEY_VARIABLE = "VLA_API_KEY"


@dataclass(frozen=True)
class ServeConfig:
    """Offer a checkpoint over a websocket."""

    policy: str = "tabletop_nano"
    """checkpoint folder, or the name of a shipped checkpoint"""
    host: str = "127.0.0.1"
    """address to listen on; any other than this machine's own demands an API key, or --insecure"""
    port: int = 8000
    """port to listen on; 0: any free one"""
    api_key: str | None = field(default=None, repr=False)
    """clients must send it as `Authorization: Api-Key <key>`; better in the environment variable VLA_API_KEY, because
    the command line is seen by everyone on the machine"""
    insecure: bool = False
    """listen to the network without a key: whoever reaches the port moves the robot"""
    certificate: Path | None = None
    """PEM file of the certificate chain, for wss://"""
    private_key: Path | None = None
    """PEM file of the certificate's private key"""
    deadline_s: float = 5.0
    """a request that is not answered by then gets an error; the robot waits no longer"""
    queue: int = 8
    """requests that may wait for the policy; more are told that it is busy"""
    clients: int = 64
    """connections at a time"""
    drain_s: float = 10.0
    """on SIGTERM, requests that are being answered may take so long"""
    seed: int = 0
    """of the policy's sampler"""
    num_inference_steps: int | None = None
    """denoising steps a chunk; none: as the checkpoint says"""
    n_action_steps: int | None = None
    """told to clients: execute this many actions of a chunk before asking again; none: as the checkpoint says"""
    decoding: Literal["actions", "plan", "waypoints", "joint", "adaptive_plan"] = "actions"
    """what is decided before the actions: see `vla eval`; committed actions (real-time chunking) need "actions\""""
    device: str = "auto"
    """"cpu", "cuda", or "auto\""""
    threads: int = 0
    """CPU threads of the network; 0: as many as pay, which is tried at the start"""
    compile: bool = False
    """compile the whole decision into one graph before listening: a minute on a CPU, and then up to twice as fast"""
    page: bool = True
    """show what the policy sees and does to a browser that opens http://host:port (with an API key: .../#key=...)"""


def is_here(host: str) -> bool:
    """Whether only this machine itself can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_of(config: ServeConfig) -> str | None:
    """The API key that is demanded, or None. ValueError for settings that would open a robot to a network."""
    key = os.environ.get(KEY_VARIABLE) if config.api_key is None else config.api_key
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(f"expected an API key of printable ASCII without spaces, got {len(key)} other characters")
    if not is_here(config.host) and key is None and not config.insecure:
        raise ValueError(
            f"expected an API key to listen on '{config.host}', which others can reach, got none; set {KEY_VARIABLE}, "
            "or say --insecure if whoever reaches the port may move the robot"
        )
    return key


def tls_of(config: ServeConfig) -> ssl.SSLContext | None:
    """The TLS settings, or None without a certificate. ValueError for files that are none or do not fit."""
    if config.certificate is None and config.private_key is None:
        return None
    if config.certificate is None or config.private_key is None:
        raise ValueError("expected --certificate and --private-key together, got one of them")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.certificate, config.private_key)
    except OSError as error:
        raise ValueError(
            f"expected a PEM certificate in '{config.certificate}' and its key in '{config.private_key}', got: {error}"
        ) from None
    return context
