"""`scripts/bench swap`: one fixed piece of work in a guest whose memory is too small for it, on
zcache and on what else there is.

`__main__.py` boots a guest for each row and prints the table; `areas.py` turns on the swap area of
a row, in the guest; `guest.py` runs the work there; `heap_of_pages.py` is the work.
"""
