"""Ports of this machine."""

from __future__ import annotations

import socket

from shared.errors import ServiceError

HOST = "127.0.0.1"


def claim(port: int, option: str) -> int:
    """The port if it is free, a free one for 0. Raises ServiceError naming port and option if taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} is taken ({error}): end what holds it, or choose another with {option}"
            ) from error
        return int(probe.getsockname()[1])
