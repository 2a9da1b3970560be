"""`nbd-server`, for nbd's own tests: zcache, with what a configuration file says of size, socket
and TLS.

    nbd-server [-d] -C FILE [-p PIDFILE]

All exports of the file are one disk, and empty, which is what the tests begin with. With -d it
serves the client that it has as standard input.
"""

import argparse
import configparser
import os
import socket
import sys
from pathlib import Path

from tests.suites import serving


def main() -> None:
    """Becomes one or the other."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-d", dest="is_single", action="store_true")
    parser.add_argument("-C", dest="configuration", required=True)
    parser.add_argument("-p", dest="pid_file")
    given = parser.parse_args()
    if os.environ[serving.SERVER] == serving.PLAIN:
        real = os.environ["ZCACHE_SUITES_NBD_SERVER"]
        serving.become(real, [real, *sys.argv[1:]])
    file = configparser.ConfigParser(interpolation=None)
    file.read(given.configuration)
    generic = file["generic"]
    export = next(file[name] for name in file.sections() if name != "generic")
    size_bytes = export.getint("filesize") or Path(export["exportname"]).stat().st_size
    options = ["-f"]
    if given.is_single:
        os.dup2(0, 1)  # nbdkit answers there
        options += ["-s"]
    elif "unixsock" in generic:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(generic["unixsock"])
        serving.hand_over(listening)
    else:
        serving.hand_over(socket.create_server(("127.0.0.1", 10809)))
    if given.pid_file:
        options += ["-P", given.pid_file]
    if len(file.sections()) == 2 and export.getboolean("readonly", False):
        options += ["-r"]
    if "certfile" in generic:
        options += ["--tls=require", "--tls-verify-peer", f"--tls-certificates={Path(generic['certfile']).parent}"]
    command = serving.command(options, size_bytes, [])
    serving.become(command[0], command)
