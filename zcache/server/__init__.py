"""A server: the pieces put together, for any front end.

`server.py` has the order that safety asks for; `assembly.py` makes the parts, `files.py` opens what
is below, `needs.py` knows what there must be for it, `standby.py` waits for a turn. `config.py` and
`capacity.py` read what it is to do. What it needs of a front end is in `front_end.py`; what a front
end's program does before it serves is in `program.py` and `start_guard.py`, and what becomes of a
start that fails in `failing_start.py`.
"""
