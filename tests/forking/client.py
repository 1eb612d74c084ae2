"""`python client.py ADDRESS ARGUMENTS…`: a command of the server's, as if it were this process.

It passes on every signal but SIGKILL, which ends the command too, and ends as the command does.
"""

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress


def main() -> None:
    """Hand over, wait, end."""
    address, *arguments = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

        def pass_on(number: int, _: object) -> None:
            with suppress(OSError):  # The command has ended meanwhile.
                connection.send(str(number).encode())

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, pass_on)
        command = {
            "arguments": arguments,
            "cwd": os.getcwd(),
            "environment": dict(os.environ),
            "largest_file": resource.getrlimit(resource.RLIMIT_FSIZE),
        }
        network = os.open("/proc/self/ns/net", os.O_RDONLY)
        socket.send_fds(connection, [json.dumps(command).encode()], [0, 1, 2, network])
        for stream in (0, 1, 2):
            os.close(stream)  # The command alone holds them: who reads them sees its end.
        code = int(connection.recv(16) or 1)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
