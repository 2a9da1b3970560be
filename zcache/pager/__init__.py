"""The pager: memory that is larger than the RAM it may take, for one process and not the machine.

A *region* is a block of memory of a client's. Its pages lie in a memfd, as many as its resident
limit allows; the others are in a store of another process, the *pager*, compressed, and below that
in its backing. The client touches its memory; the kernel stops a thread that touches a page which
is not there, and tells the pager by the region's userfaultfd(2) descriptor, which the client has
handed over. So faults are served whatever lock of Python's the thread holds.

What is true of a page, and in this order:

1. If the memfd has it, that is the page.
2. Where the memfd has a hole, it is what the store's entry says: EMPTY is zeros.

A page leaves: it is write-protected; read, by pread(2), for reading a hole through a mapping would
make a page of zeros; put into the store; and then its hole is punched. A write that came meanwhile
waits for the protection, and then faults on the hole. It comes back: it is got from the store,
copied into place by the kernel, and its entry is flushed.

Three processes: the client (`region.py`, `link.py`); its *keeper* (`keeper.py`), which holds all
that must outlive a pager, and starts it; and the pager (`worker.py`; for each region `serving.py`
and `paged_region.py`). One that dies is replaced: whatever it was in the middle of, the order above
says what is true.
"""
