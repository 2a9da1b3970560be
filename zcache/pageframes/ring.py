"""Rings: circular doubly-linked lists threaded through two flat arrays, by item.

`after` and `before` name each item's neighbours, either way around. A ring's head is an item, too,
and an empty ring is a head that is its own neighbour: so linking and unlinking have no special
cases. What is done for each page put (`Queues.link_youngest`, `Zbud.place`) links in line, without
the call.
"""

from array import array


def link(after: "array[int]", before: "array[int]", item: int, place: int) -> None:
    """Put an item that is in no ring just after another, or after a ring's head."""
    follower = after[place]
    after[place] = item
    before[item] = place
    after[item] = follower
    before[follower] = item


def unlink(after: "array[int]", before: "array[int]", item: int) -> None:
    """Take an item out of its ring; what the item itself says of its neighbours stays."""
    follower, predecessor = after[item], before[item]
    after[predecessor] = follower
    before[follower] = predecessor
