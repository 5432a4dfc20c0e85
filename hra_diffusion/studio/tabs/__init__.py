"""The tabs of the page and the panels they consist of: one file each."""
