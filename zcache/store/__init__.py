"""The store: pages are put, got and flushed, and it says what is where."""
