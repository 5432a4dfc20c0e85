"""What is on the page: one file a tab, each with ``build(session, …)``."""
