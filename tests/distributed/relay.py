"""`relay.py MILLISECONDS NAMESPACE CARD NAMESPACE CARD`: a cable that takes its time.

Each namespace gets a virtual network card (TUN), and what one sends comes out of the other after so long. For kernels
without netem.
"""

import ctypes
import fcntl
import os
import struct
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
ROOM = 1 << 16


def open_card(namespace: str, card: str) -> int:
    """Make a card in a namespace; a descriptor from which its packets are read."""
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", card.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def carry(source: int, target: int, seconds: float) -> None:
    """Let packets of a card come out of another one, so many seconds after they went in."""
    packets: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def deliver() -> None:
        while True:
            due, packet = packets.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            with suppress(OSError):  # A card that is not up yet; cables lose packets too.
                os.write(target, packet)

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        packet = os.read(source, ROOM)
        packets.put((time.perf_counter() + seconds, packet))


def main() -> None:
    """Make both cards, say so, and carry until killed."""
    seconds = float(sys.argv[1]) / 1000
    first, second = open_card(*sys.argv[2:4]), open_card(*sys.argv[4:6])
    print("ready", flush=True)
    threading.Thread(target=carry, args=(first, second, seconds), daemon=True).start()
    carry(second, first, seconds)


if __name__ == "__main__":
    main()
