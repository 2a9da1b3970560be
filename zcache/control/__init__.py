"""The control socket: status, settings and checks of a live server."""
