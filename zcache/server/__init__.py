"""A server: the pieces put together, for any front end."""
