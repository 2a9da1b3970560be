"""`python -m zcache.pager FD`: the keeper of one region, whose client is at that socket."""

import sys

from zcache.pager.keeper import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
