"""The synthetic video world of the quickstart and the tests: all of it comes from a seed."""
