"""A block device over a server's store: ranges of bytes to pages, disks by name, and what becomes
of a request that fails. For front ends that are asked for bytes at an offset, as NBD's are."""
