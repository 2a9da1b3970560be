"""How many pageframes there may be, and how that number moves."""
