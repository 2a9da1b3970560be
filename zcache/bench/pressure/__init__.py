"""`scripts/pressure`: what becomes of small machines that swap to zcache, whatever asks them for
memory.

A cell is one load in a guest of one size with its swap attached one way. `__main__.py` boots guests
and prints the table; `guest.py` takes a guest through its cells, each with a swap area of its own;
`loads.py` says what each load is and how large; `heap.py`, `build.py`, `reader.py` and `ticker.py`
are programs that run in the guest, by path and without site-packages, so that they are small;
`verdict.py` says what a cell has to show to have passed.
"""
