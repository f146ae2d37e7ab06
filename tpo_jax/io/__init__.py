"""Files that appear whole, journals and JSON."""
