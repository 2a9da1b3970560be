"""The `zcache` command, which asks a server by its control socket."""
