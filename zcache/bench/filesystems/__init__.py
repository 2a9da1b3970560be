"""What a backing may lie on: what zcache says of each, and what it loses there when the file system
is full."""
