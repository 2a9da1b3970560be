"""The ways in which turning swap on or off ends early, each with one clear line for the user."""


class SwapError(Exception):
    """Something the user or the machine must change; str() is one line that says what."""


class StillSwappingError(SwapError):
    """The swap area could not be turned off: the server and the device were left as they are, on
    purpose."""
