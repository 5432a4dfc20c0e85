"""The studio: teach, compare and use subjects in a browser.

What it does knows no gradio; `page`, `theme` and `tabs` show it.
"""
