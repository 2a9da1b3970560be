"""What lies beneath a file or block device: the file systems and devices that really take what is
written to it.

`troubles.py`: what of that is no good place for swap. `users.py`: who else has the same blocks, by
a way that the lock on the file or device itself does not reach. `own_blocks.py`: whether writing a
file again takes new blocks, and how to have it not. `lookup.py`: where all of that is read.
"""
