"""`python -m zcache.client`: the `zcache` command."""

import sys

from zcache.client import programs

if __name__ == "__main__":
    programs.become(sys.argv[1:])
    from zcache.client.command import command  # late: what it loads is not for those programs

    sys.exit(command())
