"""Where a call comes from, as gRPC tells it. Nothing here decides who that is."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import unquote

from citadel_py.core.admission import Peer

_IPV6_CUSTOMER_BITS = 64  # below that it is one network, and one customer


@lru_cache(maxsize=4096)
def peer_of(text: str) -> Peer:
    """What gRPC calls a peer: `ipv4:192.0.2.1:4242`, `ipv6:%5B2001:db8::1%5D:4242`.

    Its address is the host, of IPv6 the network of 64 bits that a customer has.
    """
    host = unquote(text).partition(":")[2].rpartition(":")[0].strip("[]")
    if ":" not in host:
        return Peer(text, host or text)
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return Peer(text, host)
    if address.ipv4_mapped:
        return Peer(text, str(address.ipv4_mapped))
    return Peer(text, str(ipaddress.IPv6Network((int(address), _IPV6_CUSTOMER_BITS), strict=False)))
