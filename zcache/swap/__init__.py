"""Turning zcache swap on and off on the machine at hand: server, /dev/nbdN, swap area, and the way back.

The order is the whole point: server, device, swap area going up; swap area, device, server coming down.
A server that ends while the kernel still swaps to it takes the machine with it, so whoever ends the machine
(init, a shutdown script, a supervisor, a test) must call `take_down`, or run scripts/swap-down, before
it ends the server.  systemd does this only for swap units ordered after the server's unit.
"""
