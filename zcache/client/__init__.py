"""The `zcache` command, in which all that a user of the swap calls is one word away.

`programs` has the words that become programs of their own (up, down, upgrade, serve); `command` the
rest: what asks a server by its control socket, sleep, and the unit for systemd (`systemd_unit`,
which is shipped in `systemd/`). `tables` prints a server's answers, whose shapes are in
`zcache.control.answers`.

`remote` asks no server but the engines of `remote=`: by redis-py (`remote_engines`), whose keys
there are (`remote_accounts`); `remote_tables` prints it.
"""
