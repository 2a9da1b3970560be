"""The image: what a server's pages and books lie in, in memory that the keeper holds, so that they
outlive it."""
