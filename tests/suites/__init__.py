"""`scripts/test --suites [NAME…]`: test suites that other projects wrote for NBD servers, run
against zcache.

    name      what it runs                                         what zcache stands in for
    nbd       nbd-server's own: integrity logs, TLS, handshake     its nbd-server
    libnbd    nbdcopy, nbdinfo, nbdfuse; parallel clients          nbdkit's memory and pattern
    nbdkit    its filters, its --run, limits, protocol variants    its memory plugin
    qemu      iotests, `check -raw -nbd`                           its qemu-nbd

The scripts run as they are. Each starts its server by name, so a stand-in of that name comes first
on the path: it starts zcache where the script asks for a writable disk of a certain size, notes so
in a journal, and becomes the real program for everything else. A test that never came to zcache is
left out, not passed.

A test that fails is run once more against the server that it was written for. If it fails there as
well, it says nothing about zcache here (a tool is missing, a newer version is wanted), and is left
out with its last line. What a swap device of whole pages is not made for is listed, with reasons,
in each suite's file.

Before that each suite proves that it can fail: one of its tests is run against a server that
returns a wrong byte (`lying_disk.py`), and must fail.

The sources are Debian's, fetched by apt from this machine's own mirror, and kept in
`~/.cache/zcache/suites`. Nothing of them is in this tree.
"""
