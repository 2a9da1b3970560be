"""What several tests use: pages to store, a tier in memory that can be told to fail, stores small
enough to visit every state."""
