"""Clean pages: a cache in front of a disk that has them all."""
