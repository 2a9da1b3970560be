"""Turning zcache swap on and off on the machine at hand: server, /dev/nbdN, swap area, and the way
back.

The order is the whole point: server, device, swap area going up; swap area, device, server coming
down. A server that ends while the kernel still swaps to it is replaced by its keeper; when both end
they take the machine with them.  So whoever ends the machine (init, a shutdown script, a test) must
call `take_down`, or run scripts/swap-down, before it ends them.
"""
