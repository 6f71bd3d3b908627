"""A server of S3's protocol in a process of its own, behind a proxy that can go away for a while."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import boto3
import requests
from botocore.exceptions import BotoCoreError

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "raycnn",
    "AWS_SECRET_ACCESS_KEY": "raycnn",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Proxy:
    """Passes connections on to a port, unless it is told to refuse them, or to be slow.

    `encoded` is the part of a path: a body that is put there is stored with its chunk headers, as
    by a server that does not know them.
    """

    def __init__(self, port: int):
        self.target, self.delay_s, self.refusing, self.encoded = port, 0.0, False, b""
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse all connections, also those that are open, for as long as the block takes."""
        self.refusing = True
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self.refusing = False

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open |= {client, server}
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self.delay_s)
                if self.encoded and data.startswith(b"PUT") and self.encoded in data:
                    data = data.replace(b"STREAMING-UNSIGNED-PAYLOAD-TRAILER", b"UNSIGNED-PAYLOAD")
                target.sendall(data)
        for end in (source, target):
            self._open.discard(end)
            end.close()


class Server:
    """An S3 with buckets of its own; `uri` leads to one through the proxy."""

    def __init__(self, port: int):
        self.port, self.proxy = port, Proxy(port)
        self.client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")
        self._buckets = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """A new bucket's name."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.client.create_bucket(Bucket=name)
        return name

    def uri(self, bucket: str, path: str = "runs") -> str:
        endpoint = f"http://127.0.0.1:{self.proxy.port}"
        return f"s3://{bucket}/{path}?endpoint_override={endpoint}&scheme=http&region=us-east-1"

    def names(self, bucket: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return [one["Key"] for one in found]

    def read(self, bucket: str, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=bucket, Key=name)["Body"].read())

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Refuse every key, for it knows none."""
        self._ask("0")
        try:
            yield
        finally:
            self._ask("inf")

    def _ask(self, count: str) -> None:
        url = f"{self.url}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        requests.post(url, count, headers=plain, timeout=30).raise_for_status()


@contextmanager
def running() -> Iterator[Server]:
    """Start a server, and end it."""
    os.environ |= SETTINGS
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "inf"},
    )  # fmt: skip
    try:
        server = Server(port)
        deadline = time.monotonic() + 60
        while True:
            try:
                server.client.list_buckets()
                break
            except BotoCoreError as error:
                assert process.poll() is None and time.monotonic() < deadline, error
                time.sleep(0.1)
        yield server
        server.proxy.close()
    finally:
        process.kill()
        process.wait()
