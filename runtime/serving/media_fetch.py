"""Bytes of a picture or clip that a client names by URL, and what is refused.

A `data:` URI always works. `http(s)` needs a list of domains, `file` a folder. What other servers were attacked through
(CVE-2025-6242, CVE-2026-24779, CVE-2026-33626, CVE-2026-34755) is closed here: a URL is parsed once, its host resolved once,
every address must be public, that very address is dialled, and redirects are not followed.
"""

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

import httpx

from .api_error import ApiError, refuse

Resolver = Callable[[str, int], Awaitable[list[str]]]  # host, port → addresses

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[\w.+\"-]*)*(;base64)?,", re.ASCII | re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Frames as concatenated JPEGs: thousands of them fit into a small body (CVE-2026-34755). No container that we read.
_REFUSED_TYPES = ("video/jpeg", "video/mjpeg", "image/svg+xml")


@dataclass(frozen=True)
class MediaPolicy:
    """Where media may come from.

    Attributes:
        domains: hosts of http(s) URLs; ".example.org" allows every host below it. Empty: no http(s) at all.
        folder: `file://` URLs may name files below it; None: none.
        private_addresses: whether a host may resolve to an address that is not public (an intranet's media server).
        max_bytes: of one item, encoded.
        timeout: seconds that one download may take.
        base: plain paths, without a scheme, may name files below it, relative to it, and absolute ones below `folder`; None:
            none, as a server has it.
    """

    domains: tuple[str, ...] = ()
    folder: Path | None = None
    private_addresses: bool = False
    max_bytes: int = 64 << 20
    timeout: float = 10.0
    base: Path | None = None


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def fetch(url: str, policy: MediaPolicy, param: str, resolver: Resolver = resolve) -> bytes:
    """The bytes behind a URL.

    Args:
        url: `data:`, `https:`, `http:` or `file:`.
        policy: what is allowed.
        param: the field of the request that names the URL, for errors.
        resolver: of host names.

    Raises:
        ApiError: 400, the URL is not allowed or leads nowhere; 413, it is too large.
    """
    if url[:5].lower() == "data:":
        return _decode(url, policy, param)
    if policy.base is not None and not _SCHEME.match(url):
        return await asyncio.to_thread(_read_path, Path(url), policy, param)
    parts = _split(url, param)
    if parts.scheme in ("http", "https"):
        return await _download(parts, policy, param, resolver)
    if parts.scheme == "file":
        return await asyncio.to_thread(_read, parts, policy, param)
    raise refuse(param, f"{param} must be a data: URI (or an https: URL where the server allows its domain)")


def _decode(url: str, policy: MediaPolicy, param: str) -> bytes:
    head = _DATA.match(url[:200])
    if head is None or head.group(3) is None:
        raise refuse(param, f"{param} must be a base64 data: URI, such as data:image/png;base64,…")
    if (head.group(1) or "").lower() in _REFUSED_TYPES:
        raise refuse(param, f"{param} has type {head.group(1)}, which is not supported; send PNG, JPEG, WebP or MP4")
    if (len(url) - head.end()) * 3 // 4 > policy.max_bytes + 2:  # before it is decoded
        raise _too_large(param, policy)
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise refuse(param, f"{param} is not valid base64") from None
    if not data:
        raise refuse(param, f"{param} is empty")
    if len(data) > policy.max_bytes:
        raise _too_large(param, policy)
    return data


def _split(url: str, param: str) -> SplitResult:
    # Parsers disagree about backslashes, white space and control characters (CVE-2026-24779): none may be there.
    if len(url) > 4096 or "\\" in url or any(ord(c) <= 0x20 or ord(c) == 0x7F for c in url):
        raise refuse(param, f"{param} is not a URL")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise refuse(param, f"{param} is not a URL") from None
    if parts.username is not None or parts.password is not None:
        raise refuse(param, f"{param} must not hold a user name or password")
    return parts


async def _download(parts: SplitResult, policy: MediaPolicy, param: str, resolver: Resolver) -> bytes:
    host = (parts.hostname or "").rstrip(".").lower()
    if not policy.domains:
        raise refuse(
            param, f"{param}: this server takes data: URIs only (it was started without --allowed-media-domains)"
        )
    if not host or not any(host == d or (d.startswith(".") and host.endswith(d)) for d in policy.domains):
        raise refuse(param, f"{param}: the host '{host}' is not one of this server's allowed media domains")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = await asyncio.wait_for(resolver(host, port), policy.timeout)
    except (OSError, UnicodeError, TimeoutError):
        addresses = []
    if not addresses:
        raise refuse(param, f"{param}: the host '{host}' cannot be resolved")
    if not policy.private_addresses and not all(_is_public(address) for address in addresses):
        raise refuse(param, f"{param}: the host '{host}' has an address that is not public")
    address = addresses[0]
    literal = f"[{address}]" if ":" in address else address
    path = parts.path or "/"
    target = f"{parts.scheme}://{literal}:{port}{path}" + (f"?{parts.query}" if parts.query else "")
    shown = host if parts.port is None else f"{host}:{port}"
    try:
        async with (
            asyncio.timeout(policy.timeout),
            httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=policy.timeout) as client,
            client.stream(
                "GET", target, headers={"Host": shown, "Accept-Encoding": "identity"}, extensions={"sni_hostname": host}
            ) as reply,
        ):
            if reply.status_code != 200:
                what = "redirects, which is not followed" if reply.is_redirect else f"answers {reply.status_code}"
                raise refuse(param, f"{param}: the media host {what}")
            return await _read_capped(reply, policy, param)
    except (httpx.HTTPError, TimeoutError, OSError):
        raise refuse(param, f"{param}: the media host does not answer") from None


async def _read_capped(reply: httpx.Response, policy: MediaPolicy, param: str) -> bytes:
    if (
        reply.headers.get("content-encoding", "identity").lower() != "identity"
    ):  # unpacked, a few bytes may be gigabytes
        raise refuse(param, f"{param}: the media host compresses what it sends, which is not read here")
    length = reply.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > policy.max_bytes:
        raise _too_large(param, policy)
    data = bytearray()
    async for piece in reply.aiter_raw():
        data += piece
        if len(data) > policy.max_bytes:
            raise _too_large(param, policy)
    if not data:
        raise refuse(param, f"{param}: the media host sent nothing")
    return bytes(data)


def _is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, mapped and embedded IPv4 addresses unwrapped."""
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.is_site_local:  # fec0::/10, deprecated, which `is_global` takes for public
            return False
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _read(parts: SplitResult, policy: MediaPolicy, param: str) -> bytes:
    if policy.folder is None:
        raise refuse(
            param, f"{param}: this server opens no local files (it was started without --allowed-local-media-path)"
        )
    if parts.netloc not in ("", "localhost"):
        raise refuse(param, f"{param}: a file: URL must name a local file")
    return _read_below(Path(url2pathname(unquote(parts.path))), policy.folder, policy, param)


def _read_path(path: Path, policy: MediaPolicy, param: str) -> bytes:
    if not path.is_absolute():
        assert policy.base is not None
        return _read_below(policy.base / path, policy.base, policy, param)
    if policy.folder is None:
        raise refuse(
            param, f"{param}: an absolute path needs --allowed-local-media-path; relative ones are beside the input"
        )
    return _read_below(path, policy.folder, policy, param)


def _read_below(path: Path, folder: Path, policy: MediaPolicy, param: str) -> bytes:
    folder = folder.resolve()
    try:
        path = path.resolve(strict=True)
        inside = path.is_relative_to(folder) and path.is_file()
        size = path.stat().st_size if inside else 0
    except (OSError, ValueError):
        inside, size, path = False, 0, folder
    if not inside:  # whether it exists outside is nobody's business
        raise refuse(param, f"{param}: there is no such file below {_where(policy)}")
    if size > policy.max_bytes:
        raise _too_large(param, policy)
    with path.open("rb") as file:
        data = file.read(policy.max_bytes + 1)
    if len(data) > policy.max_bytes:
        raise _too_large(param, policy)
    return data


def _where(policy: MediaPolicy) -> str:
    return "this server's media folder" if policy.base is None else "the folder that may be read"


def _too_large(param: str, policy: MediaPolicy) -> ApiError:
    limit = f"{policy.max_bytes / (1 << 20):.3g} MiB"
    return ApiError(413, f"{param} is larger than {limit}; send a smaller one", param=param, code="too_large")
