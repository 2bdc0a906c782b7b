"""Shows results: in a terminal, as HTML, as JSON and CSV."""
