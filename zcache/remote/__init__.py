"""Other machines' memory: cold frames at a Redis or Valkey that people already run.

It is the user-space heir of ramster, which sent frames to a peer's idle RAM and lost them with it.
Here a peer's death loses nothing: each frame is at two engines (`remote_tier`), or at one with all
of them on the backing, too (`remote_front`). The engine does what it is good at, to keep values in
memory; placing copies, noticing losses and making copies again is done here. An engine's own
replication is not relied on: what it has acknowledged may be gone after a failover.

From the wire up: `wire` and `resp` (RESP2 over preallocated buffers), `url`, `peer` (one engine,
its connections, whether it is the one that it was), `tables` (what is known of each slot's copies;
it outlives the server), `copies` (sent, and who holds which), `reading` (fetched), the two tiers,
and `mender` (all that can wait; `remirror` makes second copies again, `sweeper` removes what is not
wanted).
`engines`, `reach`, `checks` and `cluster` are for the start, and for a Cluster's map; `accounts`
for the keys that people see.

Nothing of this is imported without `remote=`.
"""
