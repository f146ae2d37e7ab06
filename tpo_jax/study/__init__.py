"""The study behind the paper's tables and figures; the quickstart is its smallest member."""
