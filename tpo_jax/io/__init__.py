"""Files that appear whole, journals, JSON, paths, and worker processes."""
