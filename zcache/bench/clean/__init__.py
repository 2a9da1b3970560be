"""What is a cache of clean data worth: hits, and reads of the disk saved, with and without
admission by reuse."""
