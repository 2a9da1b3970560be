"""Frames leave RAM: written back, dropped, packed, compressed again."""
