"""What a page is: its entry in the page table, its key, its compressed form (a zpage)."""
