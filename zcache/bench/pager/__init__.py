"""`scripts/bench pager`: a region beside a file that is mapped, and beside plain memory."""
